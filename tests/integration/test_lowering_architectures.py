"""Twenty architectures on the runtime: programs compute what the quantized models do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import torchquilt as tq
from architectures import Architecture, decoders, encoders, mixtures, pairs, vision
from architectures.behaviours import Subject, measure, quantizer, results

_TABLES = (vision.TABLE, encoders.TABLE, decoders.TABLE, mixtures.TABLE, pairs.TABLE)
_ARCHITECTURES = {architecture.name: architecture for table in _TABLES for architecture in table}

#: Those that are lowered in every run: images, text, and text token by token.
FEW = ("resnet", "distilbert", "llama")
MORE = (
    "vit", "swin", "convnext", "mobilenet_v1", "mobilenet_v2", "poolformer", "segformer", "bert", "albert",
    "squeezebert", "convbert", "gpt2", "opt", "qwen2", "phi3", "t5", "clip",
)  # fmt: skip

#: The fixture ``record_property``, which tells what was measured (``--junit-xml`` has it).
Record = Callable[[str, object], None]

#: What a program has to agree with the quantized model in, in dB.
LEAST = 40.0

#: The name of a delegate's kernel for an operator with weights → the operators that it computes.
KERNELS = {
    "FullyConnected": ("aten.linear.default", "aten.addmm.default", "aten.matmul.default", "aten.mm.default"),
    "Conv2d": ("aten.conv1d.default", "aten.conv2d.default", "aten.conv1d.padding", "aten.conv2d.padding"),
    "DepthwiseConv2d": (),
    "ConvTranspose2d": ("aten.conv_transpose1d.default", "aten.conv_transpose2d.input"),
}

_both = pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])


@pytest.mark.long
@_both
@pytest.mark.parametrize("name", FEW)
def test_a_few_architectures_run_as_they_were_converted(
    name: str, is_dynamic: bool, record_property: Record
) -> None:
    """Each output has 40 dB and more, and each kernel with weights computes in what the ledger says."""
    record_property("sqnr", f"{check(_ARCHITECTURES[name], is_dynamic=is_dynamic):.1f} dB, program to Q/DQ")


@pytest.mark.exhaustive
@_both
@pytest.mark.parametrize("name", MORE)
def test_architectures_run_as_they_were_converted(
    name: str, is_dynamic: bool, record_property: Record
) -> None:
    """The same of those that take long in all."""
    record_property("sqnr", f"{check(_ARCHITECTURES[name], is_dynamic=is_dynamic):.1f} dB, program to Q/DQ")


def check(architecture: Architecture, *, is_dynamic: bool) -> float:
    """Quantize, lower, run and compare; returns the signal to noise of the worst output, in dB."""
    subject = Subject.of(architecture)
    prepared = tq.prepare_pt2e(subject.exported, quantizer(is_dynamic=is_dynamic))
    converted = tq.convert_pt2e(tq.calibrate(prepared, subject.batches))
    batch = subject.batches[0]
    program = tq.lower(converted, batch)
    found = results(program.run, [batch])
    noise = measure(results(converted, [batch]), found)
    assert min(noise) >= LEAST, noise
    check_ledger(program)
    return min(noise)


def check_ledger(program: tq.LoweredProgram) -> None:
    """As many kernels with weights compute with integers as rows of the ledger say, and no others."""
    assert program.ledger is not None
    weighted = {overload for overloads in KERNELS.values() for overload in overloads}
    rows = [row for row in program.ledger if row.op in weighted and row.lowered is not None]
    as_integers = [row for row in rows if row.lowered and row.lowered.code == "delegated_as_integers"]
    kernels = [kernel for kernel in program.kernels if kernel.name in KERNELS]
    integer = [kernel for kernel in kernels if kernel.arithmetic == "integer"]
    assert as_integers
    assert len(integer) == len(as_integers), ([*map(str, kernels)], [row.node for row in as_integers])
    strays = [row.node for row in as_integers if not row.is_quantized]
    assert not strays
