"""Code that was written for torchao's flow, run with its imports changed to ``torchquilt_torchao.compat``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchao.quantization.pt2e as torchao_names
import torchao.quantization.pt2e.quantizer as torchao_quantizers
from torch import nn
from torchao.quantization.pt2e import quantize_pt2e as torchao_steps

import torchquilt as tq
from plugins.oracle import are_bit_equal, describe
from plugins.torchao.models import MODELS, model_of
from plugins.torchao.vendors import VENDORS
from torchquilt_torchao import compat

pytestmark = pytest.mark.filterwarnings("ignore:Something was asked for in this model")

TORCHAO = SimpleNamespace(
    **vars(torchao_names),
    **{
        name: getattr(module, name)
        for module in (torchao_quantizers, torchao_steps)
        for name in compat.__all__
        if hasattr(module, name) and not hasattr(torchao_names, name)
    },
)


def tutorial_quantizer(api: Any) -> Any:
    """A quantizer as the tutorial on writing one does it: conv and linear, add with sharing, a derived bias.

    Args:
        api: where the names come from.
    """
    activation = api.QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_tensor_affine,
        is_dynamic=False,
        observer_or_fake_quant_ctr=api.MinMaxObserver.with_args(eps=2**-12),
    )
    weight = api.QuantizationSpec(
        dtype=torch.int8,
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_tensor_symmetric,
        ch_axis=None,
        is_dynamic=False,
        observer_or_fake_quant_ctr=api.MinMaxObserver.with_args(eps=2**-12),
    )

    def derive(sources: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        (scale, _), (weight_scale, _) = (source.calculate_qparams() for source in sources)
        return (scale * weight_scale).float(), torch.zeros(1, dtype=torch.int64)

    class BackendQuantizer(api.Quantizer):  # type: ignore[misc]
        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            for node in model.graph.nodes:
                if node.target in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
                    self._annotate_weighted(node)
                elif node.target is torch.ops.aten.add.Tensor:
                    self._annotate_add(node)
                elif node.target is torch.ops.aten.sigmoid.default:
                    fixed = api.FixedQParamsQuantizationSpec(
                        torch.uint8, 1 / 256, 0, 0, 255, torch.per_tensor_affine
                    )
                    api.annotate_input_qspec_map(node, node.args[0], activation)
                    api.annotate_output_qspec(node, fixed)
            return model

        def _annotate_weighted(self, node: torch.fx.Node) -> None:
            data, kernel = node.args[:2]
            inputs = {data: activation, kernel: weight}
            if len(node.args) > 2 and node.args[2] is not None:
                inputs[node.args[2]] = api.DerivedQuantizationSpec(
                    derived_from=[(data, node), (kernel, node)],
                    derive_qparams_fn=derive,
                    dtype=torch.int32,
                    quant_min=-(2**31),
                    quant_max=2**31 - 1,
                    qscheme=torch.per_tensor_symmetric,
                )
            node.meta["quantization_annotation"] = api.QuantizationAnnotation(
                inputs, activation, _annotated=True
            )

        def _annotate_add(self, node: torch.fx.Node) -> None:
            first, second = node.args
            if isinstance(second, torch.fx.Node):
                shared = api.SharedQuantizationSpec((first, node))
                inputs = {first: activation, second: shared}
                node.meta["quantization_annotation"] = api.QuantizationAnnotation(
                    inputs, shared, _annotated=True
                )

        def validate(self, model: torch.fx.GraphModule) -> None:
            pass

    return BackendQuantizer()


def quantized(api: Any, name: str, quantizer: Any) -> torch.fx.GraphModule:
    """The steps of torchao's tutorials."""
    model = model_of(name)
    exported = torch.export.export(model.module.eval().requires_grad_(False), model.inputs).module()
    prepared = api.prepare_pt2e(exported, quantizer)
    prepared(*model.inputs)
    converted: torch.fx.GraphModule = api.convert_pt2e(prepared)
    return converted


@pytest.mark.parametrize("name", ["conv", "residual", "gate", "pooled head"])
def test_the_tutorials_quantizer_gives_the_same_program(name: str) -> None:
    """The same code with the names of compat makes the same program."""
    theirs = quantized(TORCHAO, name, tutorial_quantizer(TORCHAO))
    ours = quantized(compat, name, tutorial_quantizer(compat))
    assert describe(ours) == describe(theirs)
    assert are_bit_equal(ours, theirs, model_of(name).inputs)


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_the_tutorials_quantizer_on_each_model(name: str) -> None:
    """The same for all models."""
    theirs = quantized(TORCHAO, name, tutorial_quantizer(TORCHAO))
    ours = quantized(compat, name, tutorial_quantizer(compat))
    assert describe(ours) == describe(theirs)


@pytest.mark.parametrize("observer", ["MinMaxObserver", "HistogramObserver", "MovingAverageMinMaxObserver"])
def test_a_spec_chooses_the_observer(observer: str) -> None:
    """Each activation has the observer of torchquilt that comes nearest to the named one."""

    class OneLinear(compat.Quantizer):  # type: ignore[misc]
        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            for node in model.graph.nodes:
                if node.target is torch.ops.aten.linear.default:
                    spec = compat.QuantizationSpec(torch.int8, getattr(compat, observer))
                    compat.annotate_output_qspec(node, spec)
            return model

        def validate(self, model: torch.fx.GraphModule) -> None:
            pass

    exported = torch.export.export(nn.Linear(4, 2).eval(), (torch.ones(3, 4),)).module()
    prepared = compat.prepare_pt2e(exported, OneLinear())
    (found,) = (type(m.observer).__name__ for m in prepared.modules() if hasattr(m, "observer"))
    assert found == observer.replace("MovingAverageMinMax", "MovingAverage")


def test_training_with_the_old_names() -> None:
    """A foreign config for training is trained, and train() and eval() switch the exported model."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()
    inputs = (torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)),)
    exported = compat.allow_exported_model_train_eval(torch.export.export(model, inputs).module())
    exported.eval()
    assert not exported.training
    exported.train()
    assert exported.training

    from plugins.torchao.vendors import _xnnpack

    prepared = compat.prepare_qat_pt2e(exported, _xnnpack(is_per_channel=True, is_qat=True))
    optimizer = torch.optim.SGD(prepared.parameters(), 0.01)
    for _ in range(2):
        prepared(*inputs).square().mean().backward()
        optimizer.step()
    compat.move_exported_model_to_eval(prepared)
    converted = compat.convert_pt2e(prepared)
    assert any("quantize_per_channel" in line for line in describe(converted))
    assert tq.ledger_of(converted).rows[0].quantizer == "XNNPACKQuantizer"


def test_every_name_of_torchao_that_is_promised_is_there() -> None:
    """Compat has the public names of torchao's quantizer package, and those of the flow."""
    missing = {*torchao_quantizers.__all__} - {*compat.__all__}
    assert missing == {"DuplicateDQPass", "PortNodeMetaForQDQ"}  # passes of torchao's own convert
    assert all(hasattr(compat, name) for name in compat.__all__)


def test_a_composition_of_old_and_new() -> None:
    """Both kinds of quantizers compose under the old name."""
    quantizer = compat.ComposableQuantizer([VENDORS["vulkan"](), "executorch_embedding:byte_per_row"])
    ledger = tq.ledger_of(quantized(compat, "text", quantizer))
    takers = {row.op: row.quantizer for row in ledger.rows}
    assert takers["aten.linear.default"] == "VulkanQuantizer"
    assert takers["aten.embedding.default"] == "ExecuTorchEmbeddingQuantizer"
