"""Training of embedding tables: float zero points and groups, alone and beside another backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import torchquilt as tq
from strategies import calls, export, normal
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer
from trained import differences, distances, train, trainable, values_of

IDS = (torch.tensor([[1, 5, 2, 5], [0, 3, 3, 19]]),)
each_preset = pytest.mark.parametrize("preset", [*ExecuTorchEmbeddingQuantizer.PRESETS])


def table(width: int = 128) -> nn.Module:
    """A table whose rows are no two of one range, and a linear behind it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, width), nn.Linear(width, 8))
    with torch.no_grad():
        model[0].weight.mul_(torch.linspace(0.1, 3, 20).reshape(-1, 1)).add_(normal(20, 1, seed=1))
    return model


def quantizer(preset: str, beside: str = "") -> tq.Quantizer:
    """The tables, and with another backend the linears, too."""
    tables = ExecuTorchEmbeddingQuantizer.from_preset(preset)
    return tq.ComposableQuantizer([tables, XNNPACKQuantizer.from_preset(beside)]) if beside else tables


def calibrated(model: nn.Module, meant: tq.Quantizer) -> Any:
    """Prepared for calibration, and calibrated."""
    return tq.calibrate(tq.prepare_pt2e(export(model, *IDS), meant), [IDS])


@pytest.mark.parametrize("way", ["moving_average", "learned"])
@pytest.mark.parametrize("beside", ["", "static_int8_per_channel", "dynamic_int8_weight_int4_group32"])
@each_preset
def test_no_step_from_calibrated_ranges_is_calibration(preset: str, beside: str, way: str) -> None:
    """Of float zero points, per row and in groups of 8, 4 and 2 bits, not a bit is lost."""
    model, meant = table(), quantizer(preset, beside)
    ranges = calibrated(model, meant)
    (expected,) = values_of(tq.convert_pt2e(ranges), IDS)
    begun = trainable(model, IDS, meant, fake_quantize=way, ranges_from=ranges)
    assert distances([expected], values_of(begun.eval(), IDS)) == [0.0]
    assert distances([expected], values_of(tq.convert_pt2e(begun), IDS)) == [0.0]


@each_preset
def test_a_table_that_was_trained_converts_to_what_it_was(preset: str) -> None:
    """Rows that were looked up move, the others stay, and evaluation is the converted model."""
    model = trainable(table(), IDS, quantizer(preset, "static_int8_per_channel"))
    before = model.get_parameter("0.weight").detach().clone()
    train(model, [IDS] * 3, rate=0.1)
    moved = (model.get_parameter("0.weight").detach() != before).any(1)
    assert set(moved.nonzero().flatten().tolist()) == set(IDS[0].flatten().tolist())
    assert differences(model, IDS) == [0.0]
    assert calls(tq.convert_pt2e(model), "dequantize")


@each_preset
def test_training_looks_up_the_rounded_rows(preset: str) -> None:
    """In training the rows are those of evaluation; the gradient goes to them as if they were not rounded."""
    torch.manual_seed(0)
    embedding = nn.Embedding(20, 128)
    model = trainable(nn.Sequential(embedding), IDS, quantizer(preset))
    output = model(*IDS)
    assert distances([output.detach()], values_of(model.eval(), IDS)) == [0.0]
    upstream = normal(*output.shape)
    output.backward(upstream)
    embedding(*IDS).backward(upstream)
    found, expected = model.get_parameter("0.weight").grad, embedding.weight.grad
    assert found is not None
    assert expected is not None
    assert torch.equal(found, expected)
