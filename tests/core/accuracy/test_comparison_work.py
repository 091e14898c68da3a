"""Work and memory of a comparison: counted, not timed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

import torchquilt as tq
from strategies import export, normal
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config
from work import calls_in, growth


def quantized(layers: int, width: int = 4) -> tuple[ExportedProgram, GraphModule]:
    """A chain of linears and ReLUs, and its quantized form."""
    torch.manual_seed(0)
    pairs = (nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(layers))
    x = normal(2, width)
    exported = export(nn.Sequential(*pairs), x)
    config = get_symmetric_quantization_config(is_per_channel=True)
    prepared = tq.prepare_pt2e(exported, XNNPACKQuantizer().set_global(config), activation_observer="minmax")
    return exported, tq.convert_pt2e(tq.calibrate(prepared, [(x,)]))


def compare(pair: tuple[ExportedProgram, GraphModule], batches: Any) -> tq.Comparison:
    """The comparison, without progress."""
    return tq.compare(*pair, batches, progress=False)


@pytest.mark.parametrize("batches", [1, 3])
def test_the_work_is_linear_in_operators(batches: int) -> None:
    """Each further layer costs as many calls as the one before."""
    pairs = {size: quantized(size) for size in (8, 16, 32)}
    compare(pairs[8], [(normal(2, 4),)])  # what is found out once, has been
    data = [(normal(2, 4),)] * batches
    assert growth(lambda size: calls_in((tq,), lambda: compare(pairs[size], data)), 8) == pytest.approx(
        2, rel=0.05
    )


def test_the_work_of_a_batch_is_that_of_the_one_before() -> None:
    """So it is in batches."""
    pair = quantized(8)
    x = (normal(2, 4),)
    compare(pair, [x])
    work = {count: calls_in((tq,), lambda count=count: compare(pair, [x] * count)) for count in (2, 4, 8)}
    assert work[8] - work[4] == pytest.approx(2 * (work[4] - work[2]), rel=0.02)


@pytest.mark.long
def test_five_thousand_nodes_are_compared() -> None:
    """All of them, in seconds."""
    pair = quantized(1250)
    assert len(pair[1].graph.nodes) > 5000
    comparison = compare(pair, [(normal(2, 4),)])
    assert len(comparison.operators) == 2500
    assert comparison.uncompared == ()


@pytest.mark.long
def test_data_is_read_once_and_one_batch_at_a_time() -> None:
    """No batch is held when the next but one is asked for, and as many tensors live as before."""
    pair = quantized(4, width=64)
    batches: list[weakref.ref[torch.Tensor]] = []
    living: list[int] = []

    def data() -> Iterator[tuple[torch.Tensor]]:
        for seed in range(12):
            gc.collect()
            living.append(sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects()))
            # The last batch may still be in a local of the loop that asks for the next one.
            assert sum(batch() is not None for batch in batches) <= 1
            x = normal(2, 64, seed=seed)
            batches.append(weakref.ref(x))
            yield (x,)
            del x

    assert compare(pair, data()).batches == 12
    assert len(batches) == 12
    # Samples of a tensor and the largest of its channels are kept once: a few, however many batches come.
    assert max(living[2:]) - min(living[2:]) < 8
