"""Architectures of ``transformers`` take a step of training, and convert to what they were trained to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

import torchquilt as tq
from architectures import Architecture, decoders, encoders, mixtures, pairs, vision
from trained import distance_to_target, distances

_TABLES = (vision.TABLE, encoders.TABLE, decoders.TABLE, mixtures.TABLE, pairs.TABLE)
_ARCHITECTURES = {architecture.name: architecture for table in _TABLES for architecture in table}

#: Those that take a step whenever the long tests run: images, text, token by token, experts, speech, pairs.
FEW = (
    "vit", "videomae", "convnext", "resnet", "mobilenet_v1", "poolformer", "bert, attention in single steps",
    "distilbert", "albert", "mobilebert", "squeezebert", "fnet", "convbert", "esm", "gpt2", "gpt_neo",
    "gpt_bigcode", "opt", "bloom", "qwen2", "phi", "mixtral", "granitemoe", "t5", "hubert", "clip",
)  # fmt: skip

#: Architectures that are exported in evaluation mode, and why.
IN_EVALUATION = {
    "segformer": "stochastic depth out of torch.rand, which nothing in a program switches off",
    **dict.fromkeys(
        ("detr", "deformable_detr", "m2m_100", "wav2vec2", "hubert", "wavlm", "wav2vec2-conformer",
         "time_series_transformer"),
        "layers are dropped by a random number that Python decides on, so training cannot be exported",
    ),
}  # fmt: skip
#: Architectures that take no step, and why.
NOT_TRAINED = {"reformer": "its reversible layers run without gradients in an exported program"}
MORE = tuple(name for name in _ARCHITECTURES if name not in (*FEW, *NOT_TRAINED))


def exported(architecture: Architecture, *, training: bool) -> ExportedProgram:
    """Its program in one of the two modes."""
    return torch.export.export(
        architecture.model().train(training),
        (),
        architecture.inputs(0),
        strict=architecture.strict,
        dynamic_shapes=architecture.dynamic_shapes(),
    )


def tensors(outputs: Any) -> list[torch.Tensor]:
    """The tensors in whatever a model returns."""
    return [value for value in pytree.tree_leaves(outputs) if isinstance(value, torch.Tensor)]


def check(name: str) -> None:
    """One step: parameters move, and evaluation is the converted model, bit for bit."""
    architecture = _ARCHITECTURES[name]
    inputs = architecture.inputs(0)
    program = exported(architecture, training=name not in IN_EVALUATION)
    quantizer = tq.quantizer("xnnpack", "static_int8_per_channel")
    model = tq.prepare_qat_pt2e(program, quantizer, strict=False)
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    distance_to_target(model(**inputs)).backward()
    optimizer.step()
    moved = [key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])]
    assert moved

    converted = tq.convert_pt2e(model)
    model.eval()
    with torch.no_grad():
        expected, found = tensors(model(**inputs)), tensors(converted(**inputs))
    assert expected
    assert distances(expected, found) == [0.0] * len(expected)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FEW)
def test_a_few_architectures_train_and_convert(name: str) -> None:
    """Those that are quick."""
    check(name)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MORE)
def test_architectures_train_and_convert(name: str) -> None:
    """All others."""
    check(name)


@pytest.mark.long
@pytest.mark.parametrize("name", NOT_TRAINED)
def test_what_takes_no_step_takes_none_in_float(name: str) -> None:
    """The exported program of the float model has no gradients either."""
    architecture = _ARCHITECTURES[name]
    outputs = exported(architecture, training=True).module()(**architecture.inputs(0))
    assert not any(output.requires_grad for output in tensors(outputs))


@pytest.mark.long
def test_each_name_is_one_of_an_architecture() -> None:
    """None is listed that is not there."""
    listed = {*FEW, *IN_EVALUATION, *NOT_TRAINED}
    assert listed - {*_ARCHITECTURES} == set()
