"""Patterns that are trees: values that are read twice, side inputs, alternatives, optional parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchquilt as tq
from strategies import Fn, annotated, export, normal
from torchquilt.backend import FLOAT32, Operand, Operator, Part, Sharing, Value, part
from torchquilt.backend import operators as ops
from torchquilt.graph.node_values import overload_name
from torchquilt.support.pattern import Match, OperatorPattern

SIGMOID = Operator("sigmoid", ("aten.sigmoid.default",), (Operand("input_activation", 0, "self"),))
HARDSIGMOID = Operator("hardsigmoid", ("aten.hardsigmoid.default",), ())
BATCH_NORM = Operator("batch_norm", ("aten.batch_norm.default",), ())
ERF = Operator("erf", ("aten.erf.default",), ())

X = Value()
SKIP = Value(name="skip")
GATED = OperatorPattern.tree(
    part(ops.MUL, X, part((SIGMOID, HARDSIGMOID), X), does_the_work=True), name="gated"
)
CONV = part(ops.CONV2D, does_the_work=True)
RESIDUAL = OperatorPattern.tree(
    part(
        (ops.RELU, ops.RELU6), part(ops.ADD, part(BATCH_NORM, CONV, is_optional=True), SKIP), is_optional=True
    ),
    name="residual",
)
HALF = part(ops.MUL, X, 0.5)
GELU = OperatorPattern.tree(
    part(ops.MUL, HALF, part(ops.ADD, part(ERF, part(ops.DIV, X, 2**0.5)), 1.0), does_the_work=True),
    name="gelu",
)
SHARED = OperatorPattern.tree(
    part(ops.RELU, part(ops.LINEAR, does_the_work=True, may_be_read_elsewhere=True)), name="linear_relu"
)

Y = Value(name="y")
FMA = OperatorPattern.tree(part(ops.ADD, part(ops.MUL, X, Y, does_the_work=True), X), name="fma")
ELSEWHERE = OperatorPattern.tree(
    part(ops.MUL, X, part(SIGMOID, X, may_be_read_elsewhere=True), does_the_work=True), name="elsewhere"
)
NEG = Operator("neg", ("aten.neg.default",), ())
SIDE = OperatorPattern.tree(
    part(ops.MUL, part(ERF, Y), part(NEG, X, is_optional=True), does_the_work=True), name="side"
)
TWICE = OperatorPattern.tree(part(ops.ADD, part(SIGMOID, X), part(SIGMOID, Y), does_the_work=True))

IMAGE = normal(1, 3, 4, 4)


def matches(pattern: OperatorPattern, function: Callable[..., Any]) -> list[Match]:
    """Matches of a pattern in a function of a convolution, a BatchNorm, a linear and an image."""
    model = Fn(function, conv=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3), linear=nn.Linear(4, 4)).eval()
    found = [pattern.match(node) for node in export(model, IMAGE).module().graph.nodes]
    # A tree is found at each operator that it may start at.
    return list({match.nodes: match for match in found if isinstance(match, Match)}.values())


def names(match: Match) -> list[str]:
    """The operators of a match, in its order."""
    return [overload_name(node).split(".")[1] for node in match.nodes]


@pytest.mark.parametrize(
    ("pattern", "function", "expected"),
    [
        (GATED, lambda m, x: x * torch.sigmoid(x), ["sigmoid", "mul"]),
        (GATED, lambda m, x: torch.sigmoid(x) * x, ["sigmoid", "mul"]),
        (GATED, lambda m, x: nn.functional.hardsigmoid(x) * x, ["hardsigmoid", "mul"]),
        (GATED, lambda m, x: x * torch.sigmoid(x + 1), None),
        (GATED, lambda m, x: torch.sigmoid(x) * torch.sigmoid(x), None),
        (GATED, lambda m, x: (s := torch.sigmoid(x)) * x + s, None),
        (RESIDUAL, lambda m, x: m.norm(m.conv(x)).add(x).relu(), ["conv2d", "batch_norm", "add", "relu"]),
        (RESIDUAL, lambda m, x: nn.functional.relu6(x + m.conv(x)), ["conv2d", "add", "relu6"]),
        (RESIDUAL, lambda m, x: torch.tanh(m.conv(x) + x), ["conv2d", "add"]),
        (RESIDUAL, lambda m, x: m.conv(x).relu() + x, None),
        (RESIDUAL, lambda m, x: (c := m.conv(x)) + x + c, None),
        (GELU, lambda m, x: x * 0.5 * (1 + torch.erf(x / 2**0.5)), ["mul", "div", "erf", "add", "mul"]),
        (GELU, lambda m, x: x * 0.25 * (1 + torch.erf(x / 2**0.5)), None),
        (GELU, lambda m, x: x * 0.5 * (1 + torch.erf(m.conv(x) / 2**0.5)), None),
        (SHARED, lambda m, x: (c := m.linear(x)).relu() + c, ["linear", "relu"]),
        (SHARED, lambda m, x: m.linear(x).tanh(), None),
        (FMA, lambda m, x: x * x.cos() + x, ["mul", "add"]),
        (FMA, lambda m, x: x.cos() * x + x, ["mul", "add"]),
        (FMA, lambda m, x: x + x.cos() * x, ["mul", "add"]),
        (FMA, lambda m, x: (p := x * x.cos()) + p, None),
        (ELSEWHERE, lambda m, x: (s := torch.sigmoid(x)) * x.cos() + x * s, ["sigmoid", "mul"]),
        (SIDE, lambda m, x: torch.erf(x) * -x.cos(), ["erf", "neg", "mul"]),
        (SIDE, lambda m, x: torch.erf(x) * x.cos(), ["erf", "mul"]),
        (TWICE, lambda m, x: (s := torch.sigmoid(x)) + s, None),
        (RESIDUAL, lambda m, x: (c := m.conv(x)) + c, None),
        (RESIDUAL, lambda m, x: torch.add(m.conv(x), x, alpha=2), None),
        (GELU, lambda m, x: x * 0.5 * torch.add(torch.erf(x / 2**0.5), 1.0, alpha=2), None),
    ],
)
def test_a_tree_matches_what_it_says(
    pattern: OperatorPattern, function: Callable[..., Any], expected: list[str] | None
) -> None:
    """And nothing else: another value, another number, an inner tensor that has other readers."""
    assert [names(match) for match in matches(pattern, function)] == ([] if expected is None else [expected])


def test_a_match_has_the_operands_of_its_values_and_of_what_does_the_work() -> None:
    """With their roles; the anchor is the part that says so, whichever parts are missing."""
    (match,) = matches(RESIDUAL, lambda m, x: torch.tanh(m.conv(x) + x))
    conv, add = match.nodes
    assert match.anchor is conv
    assert match.output is add
    roles = [(source.op, user.name, role) for source, user, role in match.operands]
    assert roles == [
        ("placeholder", conv.name, "input_activation"),
        ("get_attr", conv.name, "weight"),
        ("get_attr", conv.name, "bias"),
        ("placeholder", add.name, "input_activation"),
    ]
    assert RESIDUAL.roles == ("input_activation", "weight", "bias", "output_activation")
    constant = {role: match.is_constant(source) for source, user, role in match.operands if user is conv}
    assert constant == {"input_activation": False, "weight": True, "bias": True}


def test_operands_after_the_inputs_are_those_of_the_anchor_and_of_what_reads_values() -> None:
    """A part that reads other parts, and is not the anchor, adds no operands."""

    def roles(one: Part, operator: ops.Operator) -> list[str]:
        return [operand.role for operand in one.declared_by(operator)]

    assert roles(part(ops.LINEAR), ops.LINEAR) == ["input_activation", "weight", "bias"]
    assert roles(part(ops.LINEAR, X), ops.LINEAR) == ["weight", "bias"]
    assert roles(part(ops.LINEAR, part(ops.RELU), does_the_work=True), ops.LINEAR) == ["weight", "bias"]
    assert roles(part(ops.LINEAR, part(ops.RELU)), ops.LINEAR) == []


def test_a_path_begins_at_a_part_that_reads_no_other_part() -> None:
    """One for each such part, to the root."""
    left, right = part(SIGMOID, X), part(SIGMOID, part(NEG, Y))
    root = part(ops.ADD, left, right)
    assert [*root.paths()] == [(left, root), (right.parts[0], right, root)]
    assert [*root.all_parts()] == [left, right.parts[0], right, root]


def test_operands_are_those_of_the_alternative_that_stands_there() -> None:
    """Operators that compute the same have their arguments in another order."""
    products = part((ops.LINEAR, ops.ADDMM), does_the_work=True)
    pattern = OperatorPattern.tree(part(ops.RELU, products), name="products")
    assert pattern.roles == ("input_activation", "weight", "bias", "output_activation")
    (match,) = matches(
        pattern, lambda m, x: torch.addmm(m.linear.bias, x.flatten(0, 2), m.linear.weight).relu()
    )
    roles = {role: source.op for source, _, role in match.operands}
    assert roles == {"bias": "get_attr", "input_activation": "call_function", "weight": "get_attr"}


def test_a_value_without_a_role_stays_in_float() -> None:
    """It is no operand."""
    plain = OperatorPattern.tree(part(ops.ADD, CONV, Value(role="")), name="plain")
    (match,) = matches(plain, lambda m, x: m.conv(x) + x)
    assert [role for _, _, role in match.operands] == ["input_activation", "weight", "bias"]


SPEC = tq.AllowedSpec("int8", -128, 127, ("per_tensor",), symmetric=False)
SPECS = {"input_activation": (SPEC,), "output_activation": (SPEC,)}


def test_a_row_with_a_tree_is_annotated_and_converts() -> None:
    """All of it is one operator: what is between its nodes is not quantized."""
    table = tq.SupportTable("trees", (tq.SupportRow(GATED, SPECS, constraints=(FLOAT32,)),))
    int8 = tq.QuantizationSpec("int8")
    config = tq.QuantizationConfig(input_activation=int8, output_activation=int8)
    program = export(Fn(lambda _, x: x * torch.sigmoid(x)), IMAGE)
    prepared = tq.prepare_pt2e(program, tq.PatternQuantizer(table).set_global(config))
    assert {name: found.output_qspec for name, found in annotated(prepared).items()} == {
        "sigmoid": None,
        "mul": int8,
    }
    prepared(IMAGE)
    converted = tq.convert_pt2e(prepared)
    quantized = [node for node in converted.graph.nodes if "quantize_per_tensor" in str(node.target)]
    assert len([node for node in quantized if ".quantize" in str(node.target)]) == 2
    torch.testing.assert_close(converted(IMAGE), IMAGE * torch.sigmoid(IMAGE), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: (x * 0.5) * (torch.erf(x / 2**0.5) + 1),
        lambda _, x: (torch.erf(x / 2**0.5) + 1) * (x * 0.5),
    ],
)
def test_a_tree_comes_before_rows_of_its_operators_whichever_is_computed_first(
    function: Callable[..., Any],
) -> None:
    """As a longer chain comes before a shorter one."""
    patterns = (GELU, *map(OperatorPattern.of, (ops.MUL, ops.DIV, ops.ADD)))
    rows = (tq.SupportRow(pattern, SPECS, constraints=(FLOAT32,)) for pattern in patterns)
    int8 = tq.QuantizationSpec("int8")
    config = tq.QuantizationConfig(input_activation=int8, output_activation=int8)
    quantizer = tq.PatternQuantizer(tq.SupportTable("trees", tuple(rows))).set_global(config)
    prepared = tq.prepare_pt2e(export(Fn(function), IMAGE), quantizer)
    assert {found.pattern for found in annotated(prepared).values()} == {"gelu"}


@pytest.mark.parametrize("sharing", [Sharing.ALL, Sharing.OUTPUT_AS_INPUT])
def test_operators_of_a_tree_may_share_the_parameters_of_what_enters(sharing: Sharing) -> None:
    """The first tensor need not be read by the first operator."""
    tree = part(ops.ADD, SKIP, part(NEG, X), does_the_work=True)
    row = tq.SupportRow(OperatorPattern.tree(tree), SPECS, sharing=sharing, constraints=(FLOAT32,))
    int8 = tq.QuantizationSpec("int8")
    config = tq.QuantizationConfig(input_activation=int8, output_activation=int8)
    quantizer = tq.PatternQuantizer(tq.SupportTable("trees", (row,))).set_global(config)
    prepared = tq.prepare_pt2e(export(Fn(lambda _, x: x.cos() + -x.sin()), IMAGE), quantizer)
    prepared(IMAGE)
    scales = {
        node.args[1]
        for node in tq.convert_pt2e(prepared).graph.nodes
        if ".quantize_per_tensor" in str(node.target)
    }
    assert len(scales) == (1 if sharing is Sharing.ALL else 2)


def test_a_tree_says_what_does_the_work() -> None:
    """Exactly one part, which is not optional, and neither is the first."""
    with pytest.raises(tq.PatternError, match="has 0 operators that do the work"):
        OperatorPattern.tree(part(ops.MUL, X, part(SIGMOID, X)))
    read_second = part(ops.ADD, SKIP, CONV, is_optional=True)
    with pytest.raises(tq.PatternError, match=r"conv2d of the pattern .* is optional"):
        OperatorPattern.tree(part(ops.RELU, read_second))
    first = part(ops.CONV2D, is_optional=True)
    with pytest.raises(tq.PatternError, match=r"conv2d of the pattern .* is optional"):
        OperatorPattern.tree(part(ops.RELU, first, does_the_work=True))


def test_a_tree_is_named_after_its_operators() -> None:
    """In the order of data flow, unless it has a name; of alternatives, the first."""
    tree = part((ops.RELU, ops.RELU6), part(ops.MUL, X, part(SIGMOID, X), does_the_work=True))
    assert OperatorPattern.tree(tree).name == "sigmoid_mul_relu"
    assert OperatorPattern.tree(tree, name="gate").name == "gate"


def test_a_match_does_not_read_its_own_output_from_outside() -> None:
    """A value is a tensor that enters; one that the match itself computes is none."""
    shared = part(ops.RELU, X, does_the_work=True, may_be_read_elsewhere=True)
    pattern = OperatorPattern.tree(part(ops.MUL, SKIP, part(SIGMOID, shared)), name="gate")
    model = export(Fn(lambda _, x: (y := torch.relu(x)) * torch.sigmoid(y)), IMAGE).module()
    (relu,) = (node for node in model.graph.nodes if "relu" in str(node.target))
    found = pattern.match(relu)
    assert not isinstance(found, Match)
    assert found.code == "used_elsewhere"
    assert found.text == "relu is read twice, so it cannot be fused with its readers"


def test_the_reason_is_about_the_reader_that_could_be_of_the_match() -> None:
    """A first operator that others may read as well is not rejected on account of these."""
    first = part(ops.LINEAR, does_the_work=True, may_be_read_elsewhere=True)
    pattern = OperatorPattern.tree(part(SIGMOID, part(ops.RELU, first)), name="chain")

    def run(m: Any, x: torch.Tensor) -> Any:
        y = m.linear(x)
        return torch.neg(y), torch.sigmoid(z := torch.relu(y)), z

    model = export(Fn(run, linear=nn.Linear(4, 4)), normal(2, 4)).module()
    (linear,) = (node for node in model.graph.nodes if "linear.default" in str(node.target))
    found = pattern.match(linear)
    assert not isinstance(found, Match)
    assert (found.code, found.nodes[0].name) == ("used_elsewhere", "relu")


def test_a_side_input_that_others_read_is_the_reason() -> None:
    """It would have to be computed for them as well."""

    def run(_: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
        return torch.sigmoid(x) + (s := torch.sigmoid(y)), s

    model = export(Fn(run), normal(2, 4), normal(2, 4)).module()
    first, second = (node for node in model.graph.nodes if "sigmoid" in str(node.target))
    found = TWICE.match(first)
    assert not isinstance(found, Match)
    assert (found.code, found.nodes[0]) == ("used_elsewhere", second)


def test_a_number_is_no_operator() -> None:
    """A part of a pattern is computed by a node."""
    model = export(Fn(lambda _, x: torch.sigmoid(x) + 2.0), normal(2, 4)).module()
    (first,) = (node for node in model.graph.nodes if "sigmoid" in str(node.target))
    found = TWICE.match(first)
    assert not isinstance(found, Match)
    assert found.code == "not_the_operator"


def test_a_pattern_is_not_optional_as_a_whole() -> None:
    """Nothing would be left to match."""
    with pytest.raises(tq.PatternError, match="is optional"):
        OperatorPattern.tree(part(ops.RELU, does_the_work=True, is_optional=True))
