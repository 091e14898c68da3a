"""Models whose tensors share parameters: the decisions of XNNPACK's quantizer, and how near it comes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from plugins.oracle import Model, our_quantizer, outline, outputs_of, quantized_by_us
from strategies import Fn, normal, sqnr


def conv(inputs: int = 4, outputs: int = 4) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


IMAGE = (normal(2, 4, 6, 6),)
CONV = "conv2d(q, q, -)"
LINEAR = "linear(q, q, -)"


def after_conv(function: Callable[[torch.Tensor], Any]) -> Callable[[], Model]:
    """A convolution, and a function of its output."""
    return lambda: Model(Fn(lambda m, x: function(m.conv(x)), conv=conv()), IMAGE)


def dense_block() -> Model:
    """Each convolution reads all tensors before it, joined."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        first = m.first(x)
        second = m.second(torch.cat([x, first], 1))
        return m.last(torch.cat([x, first, second], 1))

    return Model(Fn(run, first=conv(), second=conv(8), last=conv(12)), IMAGE)


def overlapping_joins() -> Model:
    """Of three tensors two are joined, and another two."""

    def run(m: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        left, middle, right = m.left(x), m.middle(x) * 3, m.right(x)
        return torch.cat([left, middle], 1), torch.cat([middle, right], 1)

    return Model(Fn(run, left=conv(), middle=conv(), right=conv()), IMAGE)


@attrs.frozen
class Case:
    """A model, and the outline of the quantized one, see :func:`plugins.oracle.outline`."""

    model: Callable[[], Model]
    outline: tuple[str, ...]


CASES = {
    "slices of one tensor, added": Case(
        after_conv(lambda y: y[:, :2] + y[:, 2:]), (CONV, "slice(q)", "slice(q)", "add(q, q)", "output(q)")
    ),
    "slices of one tensor, joined in another order": Case(
        after_conv(lambda y: torch.cat([y[:, 2:], y[:, :2]], 1)),
        (CONV, "slice(q)", "slice(q)", "cat(q, q)", "output(q)"),
    ),
    # The delegate has no chunk and no split, so they are written as slices.
    "chunks of one tensor, added": Case(
        after_conv(lambda y: torch.add(*y.chunk(2, 1))),
        (CONV, "slice(q)", "slice(q)", "add(q, q)", "output(q)"),
    ),
    "parts of one tensor, joined": Case(
        after_conv(lambda y: torch.cat(y.split(2, 1)[::-1], 1)),
        (CONV, "slice(q)", "slice(q)", "cat(q, q)", "output(q)"),
    ),
    "a tensor added to itself": Case(after_conv(lambda y: y + y), (CONV, "add(q, q)", "output(q)")),
    "a tensor times itself": Case(after_conv(lambda y: y * y), (CONV, "mul(q, q)", "output(q)")),
    "the minimum of a tensor with itself": Case(
        after_conv(lambda y: torch.minimum(y, y)), (CONV, "minimum(q, q)", "output(-)")
    ),
    "a tensor compared with itself": Case(
        after_conv(lambda y: (y > y, y == y)), (CONV, "gt(q, q)", "eq(q, q)", "output(-, -)")
    ),
    "a tensor joined with itself": Case(
        after_conv(lambda y: torch.cat([y, y], 1)), (CONV, "cat(q, q)", "output(-)")
    ),
    "a reshape of the input": Case(
        lambda: Model(Fn(lambda m, x: m.conv(x.reshape(2, 4, 6, 6)), conv=conv()), (normal(2, 2, 2, 6, 6),)),
        ("reshape(-)", CONV, "output(q)"),
    ),
    "a flatten before the output": Case(
        after_conv(lambda y: y.flatten(1)), (CONV, "flatten(q)", "output(q)")
    ),
    "an input that is an output": Case(
        lambda: Model(Fn(lambda m, x: (x, m.conv(x)), conv=conv()), IMAGE), (CONV, "output(-, q)")
    ),
    "a view of an input that is an output": Case(
        lambda: Model(Fn(lambda m, x: (x.view(2, -1), m.conv(x)), conv=conv()), IMAGE),
        ("view(-)", CONV, "output(-, q)"),
    ),
    "one output twice": Case(after_conv(lambda y: (y, y)), (CONV, "output(q, q)")),
    "a join with a sigmoid": Case(
        lambda: Model(Fn(lambda m, x: torch.cat([m.conv(x), torch.sigmoid(x)], 1), conv=conv()), IMAGE),
        (CONV, "sigmoid(-)", "cat(q, q)", "output(q)"),
    ),
    "a view behind a softmax": Case(
        lambda: Model(
            Fn(
                lambda m, x: m.last(m.first(x).softmax(-1).view(6, 8)),
                first=nn.Linear(8, 8),
                last=nn.Linear(8, 4),
            ),
            (normal(2, 3, 8),),
        ),
        (LINEAR, "softmax(q)", "view(-)", LINEAR, "output(q)"),
    ),
    "dense block": Case(dense_block, (CONV, "cat(q, q)", CONV, "cat(q, q, q)", CONV, "output(q)")),
    "overlapping joins": Case(
        overlapping_joins, (CONV, CONV, "mul(q, q)", CONV, "cat(q, q)", "cat(q, q)", "output(q, q)")
    ),
}


@cache
def quantized(name: str) -> tuple[Model, GraphModule]:
    """A case, quantized statically."""
    torch.manual_seed(0)
    model = CASES[name].model()
    return model, quantized_by_us(model, our_quantizer())


@pytest.mark.parametrize("name", CASES)
def test_what_is_quantized(name: str) -> None:
    """Operators of the delegate for integers are quantized on both sides, and all else stays in float."""
    assert tuple(outline(quantized(name)[1])) == CASES[name].outline


@pytest.mark.parametrize("name", CASES)
def test_outputs_stay_near_the_float_model(name: str) -> None:
    """Eight bits and a few operators leave noise of a fiftieth of the signal; comparisons stay exact."""
    model, converted = quantized(name)
    for expected, found in zip(
        outputs_of(model.module, model.inputs), outputs_of(converted, model.inputs), strict=True
    ):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert sqnr(expected.float(), found.float()) > 34


@pytest.mark.parametrize(("name", "operators"), [("dense block", 2), ("overlapping joins", 2)])
def test_joins_that_have_a_tensor_in_common_have_one_scale(name: str, operators: int) -> None:
    """A cat gives all that it joins one scale, and what is joined twice gives both joins the same."""
    _, converted = quantized(name)
    joins = [node for node in converted.graph.nodes if "aten.cat" in str(node.target)]
    found = {source.args[1:3] for node in joins for source in node.all_input_nodes}
    assert (len(joins), len(found)) == (operators, 1)
