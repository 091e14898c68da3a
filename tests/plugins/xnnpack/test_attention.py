"""Attention: what of it is quantized. The delegate multiplies two activations in float only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import torchquilt as tq
from plugins.lowered import lower
from plugins.oracle import outputs_of
from strategies import Fn, export, normal, quantize, sqnr
from torchquilt_xnnpack import XNNPACKQuantizer

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

X = normal(1, 4, 16)
MASK = torch.full((4, 4), torch.finfo(torch.float32).min).triu(1)


def attention(kind: str) -> nn.Module:
    """Two heads with linears around them: in one operator, or in steps with a mask that is added."""

    def run(m: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key, value = (p(x).view(1, 4, 2, 8).transpose(1, 2) for p in (m.q, m.k, m.v))
        if kind == "one operator":
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        else:
            mixed = (query @ key.transpose(2, 3) / 8**0.5 + mask).softmax(-1) @ value
        return m.out(mixed.transpose(1, 2).reshape(1, 4, 16))

    torch.manual_seed(0)
    return Fn(run, **{name: nn.Linear(16, 16) for name in ("q", "k", "v", "out")})


kinds = pytest.mark.parametrize("kind", ["one operator", "steps"])
presets = pytest.mark.parametrize("preset", ["static_int8_per_channel", "dynamic_int8_per_channel"])


@kinds
def test_the_linears_around_attention_are_quantized_and_nothing_of_it(kind: str) -> None:
    """Decomposing would gain nothing, so the operator stays one; its steps stay in float with reasons."""
    exported = export(attention(kind), X, MASK)
    ledger = tq.explain(exported, XNNPACKQuantizer.from_preset("static_int8_per_channel"))
    assert sum(row.op == "aten.linear.default" for row in ledger.quantized) == 4
    codes = {row.op: row.code for row in ledger.left_in_float}
    if kind == "one operator":
        assert codes["aten.scaled_dot_product_attention.default"] == "unsupported_op"
    else:
        assert codes["aten.matmul.default"] == "constraint:constant_weight"
        assert codes["aten.add.Tensor"] == "constraint:attention_mask"
        assert codes["aten.div.Tensor"] == "not_profitable"


@kinds
@presets
def test_masked_attention_keeps_its_precision_on_the_runtime(kind: str, preset: str) -> None:
    """The mask reaches no range: lowered and run the result is near that of the float model."""
    model = attention(kind)
    converted = quantize(model, XNNPACKQuantizer.from_preset(preset), X, MASK)
    (expected,) = outputs_of(model, (X, MASK))
    assert sqnr(expected, lower(converted, X, MASK).run(X, MASK)[0]) > 30
