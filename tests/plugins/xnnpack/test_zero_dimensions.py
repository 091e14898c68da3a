"""Tensors without dimensions: inputs, results and constants, beside what is quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchquilt as tq
from strategies import Fn, normal, quantize, sqnr
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

STATIC = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
NUMBER = torch.tensor(2.0)

#: What is computed of a quantized matrix and a number without dimensions.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": lambda m, x, k: m.layer(x) + k,
    "add, the number first": lambda m, x, k: k + m.layer(x),
    "sub": lambda m, x, k: m.layer(x) - k,
    "rsub": lambda m, x, k: torch.rsub(m.layer(x), k),
    "mul": lambda m, x, k: m.layer(x) * k,
    "div": lambda m, x, k: m.layer(x) / k,
    "both": lambda m, x, k: m.layer(x) * (k + k),
    "mean": lambda m, x, k: m.layer(x) - m.layer(x).mean(),
    "sum": lambda m, x, k: m.layer(x) * m.layer(x).sum() + k,
    "relu": lambda m, x, k: torch.relu(m.layer(x) + k),
    "chain": lambda m, x, k: m.layer(m.layer(x) * k + k).sum() * k,
    "select": lambda m, x, k: m.layer(x) + m.layer(x)[0][1],
    "squeeze": lambda m, x, k: m.layer(x[:1])[:, :1].squeeze() * k,
    "reshape": lambda m, x, k: torch.relu(m.layer(x)[:1, :1].reshape(())) + k,
    "constant": lambda m, x, k: m.layer(x) * m.number + m.number - k,
}


@pytest.mark.long
def test_numbers_beside_quantized_tensors_are_lowered_and_run() -> None:
    """Whatever has no dimensions stays in float; the layers are integers, and each result is right."""
    torch.manual_seed(0)
    inputs = (normal(3, 4), NUMBER)
    module = Fn(
        lambda m, x, k: tuple(function(m, x, k) for function in FUNCTIONS.values()),
        layer=nn.Linear(4, 4),
        number=torch.tensor(1.5),
    ).eval()
    model = quantize(module, STATIC, *inputs)
    found = tq.lower(model, inputs, verify=True).run(*inputs)
    for name, expected, one in zip(FUNCTIONS, module(*inputs), found, strict=True):
        assert sqnr(expected, one) > 25, name
    layers = [row for row in tq.ledger_of(model) if row.op == "aten.linear.default"]
    assert all(row.is_quantized for row in layers)


def test_the_reason_is_told() -> None:
    """The row says what is missing, and the layers on either side are quantized as ever."""
    module = Fn(lambda m, x, k: m.layer(m.layer(x) + k), layer=nn.Linear(4, 4))
    ledger = tq.ledger_of(quantize(module, STATIC, normal(3, 4), NUMBER))
    assert ledger["add"].code == "constraint:dimensions"
    assert ledger["linear"].is_quantized
    assert ledger["linear_1"].is_quantized
