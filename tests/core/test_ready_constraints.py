"""Ready constraints: for each, calls that meet it and calls that do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import Node
from torch.nn import functional

from strategies import Fn, normal
from torchquilt.backend import Constraint, OperatorPattern, is_split
from torchquilt.backend import constraints as when
from torchquilt.backend import operators as ops
from torchquilt.graph.node_values import constant_nodes, overload_name
from torchquilt.support.call_facts import bounds, is_pointwise, padding_of, split_dimension
from torchquilt.support.pattern import Match

IMAGE, SIGNAL, ROWS = normal(2, 4, 6, 6), normal(2, 4, 6), normal(3, 4)
BATCH = torch.export.Dim("batch", min=2, max=8)
WEIGHT, KERNEL = normal(4, 5), normal(6, 4, 3, 3)

Call = Callable[..., Any]


class Stored(nn.Module):
    """A function of an input and of stored tensors."""

    def __init__(self, function: Call, *tensors: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        for number, tensor in enumerate(tensors):
            self.register_buffer(f"tensor_{number}", tensor)

    def forward(self, x: torch.Tensor) -> Any:
        """Call it."""
        return self.function(x, *self.buffers())


def match_of(
    operators: tuple[ops.Operator, ...],
    call: Call,
    x: torch.Tensor,
    *stored: torch.Tensor,
    dynamic: Any = None,
) -> Match:
    """The match of a pattern in an exported call, whichever node it ends at."""
    shapes = None if dynamic is None else (dynamic,)
    program = torch.export.export(Stored(call, *stored), (x,), dynamic_shapes=shapes)
    model = program.module()
    pattern, constants = (
        OperatorPattern.of(*operators, anchor_index=len(operators) - 1),
        constant_nodes(model.graph),
    )
    found = [pattern.match(node, constants) for node in model.graph.nodes if node.op == "call_function"]
    (match,) = [one for one in found if isinstance(one, Match)]
    return match


def linear(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
    """A product of stored tensors, with a bias where there is one."""
    return functional.linear(x, *parameters)


def conv(**options: Any) -> Call:
    """A convolution with a stored kernel."""
    return lambda x, w: functional.conv2d(x, w, **options)


_ADD, _CONV, _POOL = (ops.ADD,), (ops.CONV2D,), (ops.MAX_POOL2D,)
_MEAN, _PAD, _CLAMP = (ops.MEAN,), (ops.PAD,), (ops.CLAMP,)
_LINEAR, _MATMUL, _ADDMM = (ops.LINEAR,), (ops.MATMUL,), (ops.ADDMM,)

#: Constraint, pattern, call, input, stored tensors: it is met.
MET: list[tuple[Constraint, tuple[ops.Operator, ...], Call, torch.Tensor, tuple[torch.Tensor, ...]]] = [
    (when.NO_ALPHA, _ADD, lambda x: x + x, ROWS, ()),
    (when.NO_ALPHA, _ADD, lambda x: torch.add(x, x, alpha=1), ROWS, ()),
    (when.NO_THIRD, (ops.RSUB,), lambda x: torch.rsub(x, x), ROWS, ()),
    (when.UNSCALED, _ADDMM, lambda x, b, w: torch.addmm(b, x, w), ROWS, (normal(5), WEIGHT)),
    (when.MEAN_OVER_IMAGE, _MEAN, lambda x: x.mean((2, 3)), IMAGE, ()),
    (when.MEAN_OVER_IMAGE, _MEAN, lambda x: x.mean((-1, -2), True), IMAGE, ()),
    (when.POOLS_TO_ONE_PIXEL, (ops.ADAPTIVE_AVG_POOL2D,), lambda x: functional.adaptive_avg_pool2d(x, 1),
     IMAGE, ()),
    (when.CEIL_MODE_IS_STATIC, _POOL, lambda x: functional.max_pool2d(x, 2, ceil_mode=True), IMAGE, ()),
    (when.EVERY_PIXEL, _POOL, lambda x: functional.max_pool2d(x, 2), IMAGE, ()),
    (when.EVERY_PIXEL, _POOL, lambda x: functional.max_pool2d(x, (2, 3), (2, 1)), IMAGE, ()),
    (when.STEP_OF_ONE, (ops.SLICE,), lambda x: x[:, 1:3], ROWS, ()),
    (when.STATIC_INDEX, (ops.SELECT,), lambda x: x[:, 1], ROWS, ()),
    (when.STATIC_START, (ops.NARROW,), lambda x: x.narrow(1, 1, 2), ROWS, ()),
    (when.BY_A_NUMBER, (ops.DIV,), lambda x: x / 4, ROWS, ()),
    (when.BY_A_NUMBER, (ops.DIV,), lambda x, c: x / c, ROWS, (torch.tensor(2.0),)),
    (when.ZEROS, _PAD, lambda x: functional.pad(x, (1, 1)), ROWS, ()),
    (when.ZEROS, _PAD, lambda x: functional.pad(x, (0, 1), value=0.0), ROWS, ()),
    (when.TWO_BOUNDS, _CLAMP, lambda x: x.clamp(-1, 1.5), ROWS, ()),
    (when.CONSTANT_WEIGHT, _LINEAR, linear, ROWS, (normal(5, 4), normal(5))),
    (when.MATRIX, _MATMUL, lambda x, w: x @ w, ROWS, (WEIGHT,)),
    (when.BIAS_OF_CHANNELS, _ADDMM, lambda x, b, w: torch.addmm(b, x, w), ROWS, (normal(5), WEIGHT)),
    (when.BIAS_OF_CHANNELS, _ADDMM, lambda x, b, w: torch.addmm(b, x, w), ROWS, (normal(1, 1), WEIGHT)),
    (when.ONE_GROUP, _CONV, conv(), IMAGE, (KERNEL,)),
    (when.SEVERAL_GROUPS, _CONV, conv(groups=2), IMAGE, (normal(4, 2, 3, 3),)),
    (when.NOT_DEPTHWISE, _CONV, conv(groups=2), IMAGE, (normal(4, 2, 3, 3),)),
    (when.POINTWISE, _CONV, conv(), IMAGE, (normal(6, 4, 1, 1),)),
    (when.POINTWISE, _CONV, conv(padding="same"), IMAGE, (normal(6, 4, 1, 1),)),
    (when.EVEN_PADDING, _CONV, conv(padding="same"), IMAGE, (KERNEL,)),
    (when.EVEN_PADDING, _CONV, conv(padding=1), IMAGE, (normal(6, 4, 2, 2),)),
    (when.EVEN_PADDING, _CONV, conv(padding="same", dilation=2), IMAGE, (normal(6, 4, 2, 2),)),
    (when.PADS_IMAGE, (ops.PAD, ops.CONV2D),
     lambda x, w: functional.conv2d(functional.pad(x, (1, 1, 2, 2)), w), IMAGE, (KERNEL,)),
    (when.EVEN_INPUTS, _LINEAR, linear, ROWS, (normal(5, 4),)),
    (when.EVEN_INPUTS, _MATMUL, lambda x, w: x @ w, ROWS, (WEIGHT,)),
    (when.divides_into_groups(2), _LINEAR, linear, ROWS, (normal(5, 4),)),
    (when.FLOAT32, _ADD, lambda x: x + x, ROWS, ()),
    (when.FLOAT32_OR_16, _ADD, lambda x: x + x, ROWS.half(), ()),
    (when.IMAGE, _ADD, lambda x: x + x, IMAGE, ()),
    (when.SIGNAL, _ADD, lambda x: x + x, SIGNAL, ()),
    (when.input_rank(2, 3), _ADD, lambda x: x + x, ROWS, ()),
    (when.DIMENSIONS, _ADD, lambda x, c: x + c, ROWS, (torch.tensor(2.0),)),
    (when.ONE_RANK, (ops.CAT,), lambda x: torch.cat([x, x + 1]), ROWS, ()),
    (when.TWO_OR_MORE, (ops.CAT,), lambda x: torch.cat([x, x * 2]), ROWS, ()),
    (when.STATIC_SHAPE, _ADD, lambda x: x + x, ROWS, ()),
    (when.REPEATS_NOTHING, (ops.EXPAND,), lambda x: x.unsqueeze(0).expand(1, -1, -1), ROWS, ()),
    (when.ONE_SAMPLE, _ADD, lambda x: x + x, ROWS[:1], ()),
    (when.NOT_A_MASK, _ADD, lambda x: x + 5.0, ROWS, ()),
    (when.NOT_A_MASK, _ADD, lambda x: x.softmax(-1) + x, ROWS, ()),
    (when.NO_NORMALIZATION, (ops.MUL,), lambda x: x * x.abs(), ROWS, ()),
    (when.NO_NORMALIZATION, (ops.MUL,), lambda x: (x * x).sqrt(), ROWS, ()),
    (when.REPEATS_NOTHING, (ops.EXPAND,), lambda x: x.expand(1, -1, -1), ROWS, ()),
    (when.ONE_RANK, (ops.CAT,), lambda x: torch.cat([x, x + 1]), ROWS[0], ()),
    (when.NO_NORMALIZATION, (ops.MUL,), lambda x: (x * x) / (x.abs() + 1), ROWS, ()),
]  # fmt: skip

#: The same: it is not met.
NOT_MET: list[tuple[Constraint, tuple[ops.Operator, ...], Call, torch.Tensor, tuple[torch.Tensor, ...]]] = [
    (when.NO_ALPHA, _ADD, lambda x: torch.add(x, x, alpha=2), ROWS, ()),
    (when.NO_THIRD, (ops.RSUB,), lambda x: torch.rsub(x, x, alpha=2), ROWS, ()),
    (when.UNSCALED, _ADDMM, lambda x, b, w: torch.addmm(b, x, w, alpha=2), ROWS, (normal(5), WEIGHT)),
    (when.UNSCALED, _ADDMM, lambda x, b, w: torch.addmm(b, x, w, beta=2), ROWS, (normal(5), WEIGHT)),
    (when.POOLS_TO_ONE_PIXEL, (ops.ADAPTIVE_AVG_POOL2D,), lambda x: functional.adaptive_avg_pool2d(x, (1, 2)),
     IMAGE, ()),
    (when.MEAN_OVER_IMAGE, _MEAN, lambda x: x.mean((1, 2)), IMAGE, ()),
    (when.MEAN_OVER_IMAGE, _MEAN, lambda x: x.mean((2, 3), dtype=torch.float64), IMAGE, ()),
    (when.MEAN_OVER_IMAGE, _MEAN, lambda x: x.mean(2), IMAGE, ()),
    (when.EVERY_PIXEL, _POOL, lambda x: functional.max_pool2d(x, 1, 2), IMAGE, ()),
    (when.EVERY_PIXEL, _POOL, lambda x: functional.max_pool2d(x, (3, 1), (1, 2)), IMAGE, ()),
    (when.STEP_OF_ONE, (ops.SLICE,), lambda x: x[:, ::2], ROWS, ()),
    (when.BY_A_NUMBER, (ops.DIV,), lambda x: x / (x + 5), ROWS, ()),
    (when.BY_A_NUMBER, (ops.DIV,), lambda x, c: x / c, ROWS, (torch.tensor([2.0]),)),
    (when.ZEROS, _PAD, lambda x: functional.pad(x, (1, 1), value=1.0), ROWS, ()),
    (when.ZEROS, _PAD, lambda x: functional.pad(x, (-1, 1)), ROWS, ()),
    (when.ZEROS, _PAD, lambda x: functional.pad(x, (1, 1), mode="replicate"), ROWS, ()),
    (when.TWO_BOUNDS, _CLAMP, lambda x: x.clamp(-1), ROWS, ()),
    (when.TWO_BOUNDS, _CLAMP, lambda x: x.clamp(max=1), ROWS, ()),
    (when.CONSTANT_WEIGHT, _LINEAR, lambda x, b: functional.linear(x, x, b), ROWS, (normal(3),)),
    (when.MATRIX, _MATMUL, lambda x, w: x @ w, SIGNAL, (normal(2, 6, 3),)),
    (when.BIAS_OF_CHANNELS, _ADDMM, lambda x, b, w: torch.addmm(b, x, w), ROWS, (normal(3, 1), WEIGHT)),
    (when.BIAS_OF_CHANNELS, _ADDMM, lambda x, b, w: torch.addmm(b, x, w), ROWS, (normal(3, 5), WEIGHT)),
    (when.ONE_GROUP, _CONV, conv(groups=2), IMAGE, (normal(4, 2, 3, 3),)),
    (when.SEVERAL_GROUPS, _CONV, conv(), IMAGE, (KERNEL,)),
    (when.NOT_DEPTHWISE, _CONV, conv(groups=4), IMAGE, (normal(4, 1, 3, 3),)),
    (when.POINTWISE, _CONV, conv(), IMAGE, (normal(6, 4, 1, 3),)),
    (when.POINTWISE, _CONV, conv(stride=(1, 2)), IMAGE, (normal(6, 4, 1, 1),)),
    (when.POINTWISE, _CONV, conv(padding=(0, 1)), IMAGE, (normal(6, 4, 1, 1),)),
    (when.POINTWISE, _CONV, conv(groups=2), IMAGE, (normal(6, 2, 1, 1),)),
    (when.NOT_POINTWISE, _CONV, conv(), IMAGE, (normal(6, 4, 1, 1),)),
    (when.EVEN_PADDING, _CONV, conv(padding="same"), IMAGE, (normal(6, 4, 3, 2),)),
    (when.PADS_IMAGE, (ops.PAD, ops.CONV2D),
     lambda x, w: functional.conv2d(functional.pad(x, (0, 0, 0, 0, 1, 1)), w), IMAGE, (normal(2, 6, 3, 3),)),
    (when.EVEN_INPUTS, _LINEAR, linear, normal(3, 5), (normal(4, 5),)),
    (when.EVEN_INPUTS, _MATMUL, lambda x, w: x @ w, normal(3, 5), (normal(5, 4),)),
    (when.divides_into_groups(3), _LINEAR, linear, ROWS, (normal(5, 4),)),
    (when.FLOAT32, _ADD, lambda x: x + x, ROWS.half(), ()),
    (when.FLOAT32_OR_16, _ADD, lambda x, y: x + y, ROWS, (ROWS.half(),)),
    (when.IMAGE, _ADD, lambda x: x + x, SIGNAL, ()),
    (when.SIGNAL, _ADD, lambda x: x + x, IMAGE, ()),
    (when.input_rank(2, 3), _ADD, lambda x: x + x, IMAGE, ()),
    (when.DIMENSIONS, _ADD, lambda x: x.sum() + x, ROWS, ()),
    (when.TWO_OR_MORE, (ops.CAT,), lambda x: torch.cat([x, x]), ROWS, ()),
    (when.REPEATS_NOTHING, (ops.EXPAND,), lambda x: x.unsqueeze(0).expand(2, -1, -1), ROWS, ()),
    (when.ONE_SAMPLE, _ADD, lambda x: x + x, ROWS, ()),
    (when.NOT_A_MASK, _ADD, lambda x: x + 1e9, ROWS, ()),
    (when.NOT_A_MASK, _ADD, lambda x: x + torch.full_like(x, -1e9).tril(), ROWS, ()),
    (when.NOT_A_MASK, _ADD, lambda x: (x + x.abs()).softmax(-1), ROWS, ()),
    (when.NOT_A_MASK, _ADD, lambda x: ((x + x.abs()).reshape(4, 3) / 2).clamp(-9, 9).softmax(-1), ROWS, ()),
    (when.NO_NORMALIZATION, (ops.MUL,), lambda x: x * x.abs().rsqrt(), ROWS, ()),
    (when.NO_NORMALIZATION, (ops.MUL,), lambda x: (x * x).sqrt().reciprocal(), ROWS, ()),
    (when.NO_NORMALIZATION, (ops.MUL,), lambda x: x.sum() / (x * x).reshape(4, 3), ROWS, ()),
    (when.NO_NORMALIZATION, (ops.MUL,), lambda x: (x * x) ** -0.5, ROWS, ()),
    (when.ONE_RANK, (ops.STACK,), lambda x: torch.stack([x.sum(), x.mean()]), ROWS, ()),
    (when.EVEN_PADDING, _CONV, conv(padding="same"), IMAGE, (KERNEL[:, :, :2],)),
    (when.EVEN_PADDING, _CONV, conv(padding="same"), IMAGE, (KERNEL[..., :2],)),
    (when.ONE_RANK, (ops.COLUMN_STACK,), lambda x: torch.column_stack([x, x[:, 0]]), ROWS, ()),
]  # fmt: skip
#: Constraint, call, input: with a batch of any size it is not met.
DYNAMIC: list[tuple[Constraint, tuple[ops.Operator, ...], Call, torch.Tensor]] = [
    (when.STATIC_SHAPE, _ADD, lambda x: x + x, ROWS),
    (when.CEIL_MODE_IS_STATIC, _POOL, lambda x: functional.max_pool2d(x, 2, ceil_mode=True), IMAGE),
    (when.STATIC_INDEX, (ops.SELECT,), lambda x: x[:, 1], ROWS),
    (when.STATIC_START, (ops.NARROW,), lambda x: x.narrow(1, 1, 2), ROWS),
]


def case(number: int, cases: list[Any]) -> str:
    """The name of a case."""
    return f"{number}-{cases[number][0].code}"


@pytest.mark.parametrize("number", range(len(MET)), ids=lambda number: case(number, MET))
def test_a_constraint_is_met(number: int) -> None:
    """By a call that is as it says."""
    constraint, operators, call, x, stored = MET[number]
    assert constraint.holds(match_of(operators, call, x, *stored))


@pytest.mark.parametrize("number", range(len(NOT_MET)), ids=lambda number: case(number, NOT_MET))
def test_a_constraint_is_not_met(number: int) -> None:
    """By a call that differs in one point."""
    constraint, operators, call, x, stored = NOT_MET[number]
    assert not constraint.holds(match_of(operators, call, x, *stored))


@pytest.mark.parametrize("number", range(len(DYNAMIC)), ids=lambda number: case(number, DYNAMIC))
def test_a_constraint_on_sizes_wants_numbers(number: int) -> None:
    """A size that the model does not fix meets none of them."""
    constraint, operators, call, x = DYNAMIC[number]
    assert constraint.holds(match_of(operators, call, x))
    assert not constraint.holds(match_of(operators, call, x, dynamic={0: BATCH}))


def test_one_size_may_be_unknown_and_two_may_not() -> None:
    """One can be inferred from the others."""
    length = torch.export.Dim("length", min=2, max=8)
    one, two = ({0: BATCH}, {0: BATCH, 1: length})
    assert when.ONE_UNKNOWN.holds(match_of(_ADD, lambda x: x + x, ROWS, dynamic=one))
    assert not when.ONE_UNKNOWN.holds(match_of(_ADD, lambda x: x + x, ROWS, dynamic=two))


# --- Facts about calls --------------------------------------------------------------------------------------


def nodes_of(call: Call, x: torch.Tensor, name: str) -> list[Node]:
    """The calls of an operator in an exported function."""
    graph = torch.export.export(Fn(lambda _, given: call(given)), (x,)).graph
    return [node for node in graph.nodes if overload_name(node).startswith(f"aten.{name}")]


def test_padding_is_told_from_the_last_dimension_on() -> None:
    """As dimensions of the result, each with what stands before and behind it."""
    (pad,) = nodes_of(lambda x: functional.pad(x, (1, 2, 3, 4)), IMAGE, "pad")
    assert padding_of(pad) == {3: (1, 2), 2: (3, 4)}


def test_bounds_are_two_numbers_or_none() -> None:
    """Passed by position or by keyword."""
    (clamp,) = nodes_of(lambda x: x.clamp(-1, 2), ROWS, "clamp")
    assert bounds(clamp) == (-1, 2)
    (clamp,) = nodes_of(lambda x: x.clamp(max=2), ROWS, "clamp")
    assert bounds(clamp) == (None, 2)


@pytest.mark.parametrize(
    ("call", "dimension"),
    [
        (lambda x: x.chunk(2, 1), 1),
        (lambda x: x.chunk(2), 0),
        (lambda x: x.split(2, -1), 3),
        (lambda x: torch.split(x, [2, 4], dim=2), 2),
        (lambda x: x.unbind(1), 1),
        (lambda x: x.unbind(), 0),
        (lambda x: x.tensor_split(2, 2), 2),
        (lambda x: x.hsplit(2), 1),
        (lambda x: x.vsplit(2), 0),
        (lambda x: x.dsplit(2), 2),
        (lambda x: x[0, 0, 0].hsplit(2), 0),
    ],
)
def test_the_dimension_of_a_split_is_known(call: Call, dimension: int) -> None:
    """Whichever function splits."""
    (split,) = [node for node in nodes_of(call, IMAGE, "") if is_split(node)]
    assert split_dimension(split) == dimension


def test_what_returns_one_tensor_is_no_split() -> None:
    """Also if it has several inputs."""
    assert not any(map(is_split, nodes_of(lambda x: torch.cat([x, x]).relu(), ROWS, "")))
    (convolution,) = nodes_of(lambda x: functional.conv2d(x, torch.ones(2, 4, 1, 1)), IMAGE, "conv2d")
    assert is_pointwise(convolution)


@pytest.mark.parametrize(
    ("constraint", "operator", "overload", "length"),
    [
        (when.STATIC_INDEX, ops.SELECT, torch.ops.aten.select.int, ()),
        (when.STATIC_START, ops.NARROW, torch.ops.aten.narrow.default, (1,)),
    ],
)
def test_an_index_that_is_computed_is_not_static(
    constraint: Constraint, operator: ops.Operator, overload: Any, length: tuple[int, ...]
) -> None:
    """Even if the shape is."""
    graph = torch.fx.Graph()
    x, index = graph.placeholder("x"), graph.placeholder("index")
    x.meta["val"] = ROWS
    for given, holds in ((1, True), (index, False)):
        match = OperatorPattern.of(operator).match(graph.call_function(overload, (x, 0, given, *length)))
        assert isinstance(match, Match)
        assert constraint.holds(match) is holds


def test_padding_by_a_size_that_is_computed_may_crop() -> None:
    """Its sign is not known."""
    graph = torch.fx.Graph()
    x, size = graph.placeholder("x"), graph.placeholder("size")
    x.meta["val"] = ROWS
    for amount, holds in ((1, True), (-1, False), (size, False)):
        match = OperatorPattern.of(ops.PAD).match(
            graph.call_function(torch.ops.aten.pad.default, (x, [0, amount]))
        )
        assert isinstance(match, Match)
        assert when.ZEROS.holds(match) is holds


@pytest.mark.parametrize(
    "scores",
    [
        lambda x: torch.ops.aten._softmax(x + x, -1, False),
        lambda x: torch.ops.aten._safe_softmax(x + x, -1),
        lambda x: ((x + x) * 0.5).softmax(-1),
        lambda x: ((x + x) / 2).softmax(-1),
        lambda x: (x + x).clamp(min=-5).softmax(-1),
        lambda x: torch.maximum(x + x, x).softmax(-1),
        lambda x: torch.ops.aten._to_copy(x + x, dtype=torch.float64).softmax(-1),
        lambda x: (x + x).view(4, 3).softmax(-1),
    ],
)
def test_a_sum_may_be_a_mask_whatever_stands_between_it_and_softmax(scores: Call) -> None:
    """A temperature, a bound on the scores, another shape or dtype."""
    match = match_of(_ADD, scores, ROWS)
    assert not when.NOT_A_MASK.holds(match)


def test_codes_of_constraints_are_those_that_programs_know() -> None:
    """A ledger that is read by a program says ``constraint:static_start``."""
    assert when.STATIC_START.code == "static_start"
    assert when.SEVERAL_GROUPS.code == "several_groups"
