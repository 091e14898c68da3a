"""Operators without a row: each is given one here, and the delegate computes it in float or leaves it out.

When a later ExecuTorch has an integer kernel for one of them, its test fails, and the table gets a row.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
import torch
from torch import nn
from torch.nn import functional

from plugins.lowered import Lowered, lower
from strategies import Fn, normal, quantize
from torchquilt import OperatorPattern, SupportTable
from torchquilt.support.operators import Operand, Operator
from torchquilt_xnnpack import SUPPORT, XNNPACKQuantizer, get_symmetric_quantization_config

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

IMAGE = normal(1, 4, 8, 8)
_READS = tuple(Operand("input_activation", position, name) for position, name in enumerate(("self", "other")))

#: Overload → a call of it; with two parameters, one that reads two activations.
OPERATORS: dict[str, Callable[..., torch.Tensor]] = {
    "aten.elu.default": lambda x: functional.elu(x),
    "aten.leaky_relu.default": lambda x: functional.leaky_relu(x),
    "aten.sigmoid.default": lambda x: torch.sigmoid(x),
    "aten.tanh.default": lambda x: torch.tanh(x),
    "aten.softmax.int": lambda x: torch.softmax(x, -1),
    "aten.gelu.default": lambda x: functional.gelu(x),
    "aten.hardswish.default": lambda x: functional.hardswish(x),
    "aten.abs.default": lambda x: torch.abs(x),
    "aten.neg.default": lambda x: torch.neg(x),
    "aten.avg_pool2d.default": lambda x: functional.avg_pool2d(x, 2),
    "aten.upsample_bilinear2d.vec": lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"),
    "aten.minimum.default": lambda x, y: torch.minimum(x, y),
    "aten.maximum.default": lambda x, y: torch.maximum(x, y),
    "aten.matmul.default": lambda x, y: x.flatten(0, 1) @ y.flatten(0, 1),
}


def with_a_row(overload: str) -> XNNPACKQuantizer:
    """The quantizer, static, with one more row: the inputs and the output of this operator are integers."""
    operands = _READS[: OPERATORS[overload].__code__.co_argcount]
    operator = Operator("without_a_kernel", (overload,), operands)
    (add,) = [row for row in SUPPORT.rows if row.pattern.name == "add"]
    row = attrs.evolve(add, pattern=OperatorPattern.of(operator), constraints=(), profitable_alone=True)
    table = SupportTable(SUPPORT.backend, (row, *SUPPORT.rows))
    return XNNPACKQuantizer(table).set_global(get_symmetric_quantization_config())


def lowered(overload: str) -> Lowered:
    """The operator between convolutions, all of them quantized, on the delegate."""
    torch.manual_seed(0)
    call, two = OPERATORS[overload], OPERATORS[overload].__code__.co_argcount == 2
    model = Fn(
        lambda m, x: call(m.first(x), m.second(x)) if two else call(m.first(x)),
        first=nn.Conv2d(4, 4, 3, padding=1),
        second=nn.Conv2d(4, 4, 3, padding=1),
    )
    converted = quantize(model, with_a_row(overload), IMAGE)
    (node,) = [node for node in converted.graph.nodes if str(node.target) == overload]
    assert all("dequantize" in str(read.target) for read in node.all_input_nodes)
    return lower(converted, IMAGE)


@pytest.mark.parametrize("overload", OPERATORS)
def test_the_delegate_has_no_integer_kernel(overload: str) -> None:
    """Between integers it is left out, or a kernel that reads and writes float computes it."""
    found = lowered(overload)
    assert found.outside or any("fp32) -> fp32" in kernel for kernel in found.computing)


def test_none_of_them_has_a_row() -> None:
    """None is claimed to be quantized, but for a matmul with a constant; here it reads two activations."""
    claimed = {
        name for row in SUPPORT.rows for operator in row.pattern.operators for name in operator.overloads
    }
    assert claimed & OPERATORS.keys() == {"aten.matmul.default"}
