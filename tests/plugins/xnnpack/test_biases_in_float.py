"""Products in float: the delegate takes any bias for one with a number for each channel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import torchquilt as tq
from plugins.lowered import lower
from strategies import Fn, normal, quantize, sqnr
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

pytestmark = pytest.mark.long

ROWS, CHANNELS = 4, 5
X = normal(ROWS, 8)
STATIC = get_symmetric_quantization_config(is_per_channel=True)

PRODUCTS = {
    "addmm": lambda m, x: torch.addmm(m.bias, m.layer(x), m.weight),
    "addmm and relu": lambda m, x: functional.relu6(torch.addmm(m.bias, m.layer(x), m.weight)),
    "linear": lambda m, x: functional.linear(m.layer(x), m.weight.t().contiguous(), m.bias),
    "baddbmm": lambda m, x: torch.baddbmm(m.bias.expand(1, ROWS, CHANNELS), m.layer(x)[None], m.weight[None]),
}
SHAPES = [(CHANNELS,), (1, CHANNELS), (ROWS, CHANNELS), (ROWS, 1), (1,), (1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_in_float_adds_what_the_model_adds(name: str, shape: tuple[int, ...]) -> None:
    """A bias of another shape keeps the product out of the delegate."""
    parts: dict[str, Any] = {"weight": normal(8, CHANNELS), "bias": normal(*shape)}
    parameters = {key: nn.Parameter(value, requires_grad=False) for key, value in parts.items()}
    model = Fn(PRODUCTS[name], layer=nn.Linear(8, 8), **parameters)
    quantizer = XNNPACKQuantizer().set_object_type(nn.Linear, STATIC).set_filter_function(_is_of_the_layer)
    converted = quantize(model, quantizer, X)
    program = lower(converted, X)
    assert sqnr(converted(X), program.run(X)[0]) > 40  # a step of the layer before may be rounded otherwise
    assert "XNNPACKQuantizer" in {row.quantizer for row in tq.ledger_of(converted)}


def _is_of_the_layer(node: Any) -> bool:
    return "layer" in str(node.meta.get("nn_module_stack", ""))
