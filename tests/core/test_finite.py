"""Weights, biases and constants that no integers stand for are refused by their names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import torchquilt as tq
from strategies import Fn, normal, prepare
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

BAD = (float("nan"), float("inf"), float("-inf"))


def quantizer(*, is_dynamic: bool = False) -> XNNPACKQuantizer:
    """A quantizer for all of a model."""
    return XNNPACKQuantizer().set_global(
        get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    )


def spoilt(name: str, value: float) -> nn.Module:
    """Two layers; the first element of a parameter is no number."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4))
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value
    return model


@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", ["0.weight", "2.weight", "2.bias"])
@pytest.mark.parametrize("value", BAD)
def test_a_weight_or_bias_is_named(name: str, value: float, is_dynamic: bool) -> None:
    """With how many of its elements are what, instead of a 0 or 127 that would hide them."""
    prepared = prepare(spoilt(name, value), quantizer(is_dynamic=is_dynamic), normal(2, 8))
    prepared(normal(2, 8))
    with pytest.raises(tq.CalibrationError, match="NaN or infinite") as caught:
        tq.convert_pt2e(prepared)
    assert caught.value.node == name
    number = "1 NaN and 0 infinite" if value != value else "0 NaN and 1 infinite"
    assert str(caught.value.got).startswith(number)


@pytest.mark.parametrize(
    ("model", "inputs", "own"),
    [
        (nn.Embedding(10, 8), (torch.arange(3),), ExecuTorchEmbeddingQuantizer.from_preset("byte_per_row")),
        (
            Fn(lambda m, x: m.layer(x) + m.table, layer=nn.Linear(8, 8), table=normal(8)),
            (normal(2, 8),),
            None,
        ),
    ],
    ids=["table", "constant"],
)
def test_so_are_tables_and_constants(model: nn.Module, inputs: tuple[Any, ...], own: Any) -> None:
    """Whatever is quantized from its value."""
    tensor = model.weight if isinstance(model, nn.Embedding) else model.table
    with torch.no_grad():
        tensor.view(-1)[3:5] = float("-inf")  # type: ignore[operator, union-attr]
    prepared = prepare(model, own or quantizer(), *inputs)
    prepared(*inputs)
    with pytest.raises(tq.CalibrationError, match="0 NaN and 2 infinite"):
        tq.convert_pt2e(prepared)


def test_what_stays_in_float_keeps_them() -> None:
    """A layer that no rule asks for is as broken as it was, and the rest is quantized."""
    own = quantizer().set_module_name("2", None)
    prepared = prepare(spoilt("2.bias", float("nan")), own, normal(2, 8))
    prepared(normal(2, 8))
    converted = tq.convert_pt2e(prepared)
    assert converted(normal(2, 8))[:, 0].isnan().all()
    assert tq.ledger_of(converted)["linear"].is_quantized


def test_finite_weights_whose_sum_is_not_are_taken() -> None:
    """Only elements count."""
    model = nn.Linear(8, 4)
    with torch.no_grad():
        model.weight.fill_(3e37)
    prepared = prepare(model, quantizer(is_dynamic=True), normal(2, 8))
    assert tq.ledger_of(tq.convert_pt2e(prepared))["linear"].is_quantized
