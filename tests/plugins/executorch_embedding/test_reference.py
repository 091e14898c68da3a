"""The reference representation against ExecuTorch itself: byte embeddings, alone and before XNNPACK."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import torchquilt as tq
from plugins.lowered import lower
from plugins.oracle import outputs_of
from strategies import Fn, calls, integer_outputs, prepare, sqnr
from torchquilt.pt2e.reference import left_in_float
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

IDS = torch.tensor([[0, 8, 3, 3, 6], [5, 1, 7, 2, 4]])
KERNEL = "quantized_decomposed::embedding_byte.out"


def converted(model: nn.Module, quantizer: Any) -> tuple[torch.fx.GraphModule, torch.fx.GraphModule]:
    """A model converted to quantize and dequantize operators, and to its reference representation."""
    prepared = tq.calibrate(prepare(model, quantizer, IDS), [(IDS,)])
    return tq.convert_pt2e(prepared), tq.convert_pt2e(prepared, use_reference_representation=True)


def composed(**asked: bool) -> tq.ComposableQuantizer:
    """Embeddings as bytes, and the rest for XNNPACK."""
    config = get_symmetric_quantization_config(is_per_channel=True, **asked)
    return tq.ComposableQuantizer([ExecuTorchEmbeddingQuantizer(), XNNPACKQuantizer().set_global(config)])


def encoder() -> nn.Module:
    """Two tables, added, and a linear layer behind them."""
    torch.manual_seed(0)
    parts = {"words": nn.Embedding(9, 16), "positions": nn.Embedding(5, 16), "fc": nn.Linear(16, 6)}
    return Fn(lambda m, ids: m.fc(m.words(ids) + m.positions(torch.arange(5))), **parts)


@pytest.mark.parametrize("ids", [IDS, IDS[0], IDS.to(torch.int32)], ids=["matrix", "vector", "int32"])
def test_embedding_is_that_of_the_kernel(ids: torch.Tensor) -> None:
    """ExecuTorch's byte kernel and the reference model give the same floats, to the last bit."""
    torch.manual_seed(0)
    prepared = prepare(nn.Embedding(9, 16), ExecuTorchEmbeddingQuantizer(), ids)
    reference = tq.convert_pt2e(prepared, use_reference_representation=True)
    lowered = lower(tq.convert_pt2e(prepared), ids)

    assert KERNEL in lowered.operators
    assert left_in_float(reference) == {}
    assert torch.equal(outputs_of(reference, (ids,))[0], lowered.run(ids)[0])


def test_embeddings_before_static_kernels() -> None:
    """Two tables, an addition and a linear layer: the integers at the end differ by at most one."""
    quantized, reference = converted(encoder(), composed())
    lowered = lower(integer_outputs(quantized), IDS)

    assert KERNEL in lowered.operators
    assert {kernel.partition("(")[0] for kernel in lowered.computing} == {"Add", "FullyConnected"}
    assert left_in_float(reference) == {}
    (ours,), (theirs,) = outputs_of(integer_outputs(reference), (IDS,)), lowered.run(IDS)
    assert ours.dtype is theirs.dtype is torch.int8
    assert (ours.int() - theirs.int()).abs().max() <= 1


def test_embeddings_before_dynamic_kernels() -> None:
    """With rows quantized at run time the float output agrees to 80 dB."""
    quantized, reference = converted(encoder(), composed(is_dynamic=True))
    lowered = lower(quantized, IDS)

    assert KERNEL in lowered.operators
    assert left_in_float(reference) == {}
    assert {node.meta["val"].dtype for node in calls(reference, "linear")} == {torch.int32}
    assert sqnr(outputs_of(reference, (IDS,))[0], lowered.run(IDS)[0]) > 80
