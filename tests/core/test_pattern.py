"""OperatorPattern: a chain of operators is matched by overload and data flow, or rejected with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn import functional

import torchquilt as tq
from strategies import Fn, calls, export, normal
from torchquilt.support import operators as ops

Pattern = tq.OperatorPattern
LINEAR_RELU = Pattern.of(ops.LINEAR, ops.RELU)


def graph_of(function: Any, *inputs: torch.Tensor, **parts: Any) -> GraphModule:
    """An exported function."""
    return export(Fn(function, **parts), *inputs).module()


def match_at(pattern: tq.OperatorPattern, model: GraphModule, part: str) -> tq.Match | tq.Reject:
    """The answer at the first call of an operator."""
    return pattern.match(calls(model, part)[0])


def test_a_chain_is_matched() -> None:
    """The match has the nodes in order of data flow, and the tensors that enter with their roles."""
    model = graph_of(lambda self, x: torch.relu(self.fc(x)), normal(2, 4), fc=nn.Linear(4, 4))
    found = match_at(LINEAR_RELU, model, "linear")
    assert isinstance(found, tq.Match)
    assert [node.name for node in found.nodes] == ["linear", "relu"]
    assert (found.anchor.name, found.output.name) == ("linear", "relu")
    assert [(source.name, role) for source, _, role in found.operands] == [
        ("args_0", "input_activation"),
        ("fc_weight", "weight"),
        ("fc_bias", "bias"),
    ]
    assert [node.name for node in found.inputs("weight")] == ["fc_weight"]


def test_an_operand_that_is_not_there_is_left_out() -> None:
    """A linear without bias has no bias among its operands."""
    model = graph_of(lambda self, x: self.fc(x), normal(2, 4), fc=nn.Linear(4, 4, bias=False))
    found = match_at(Pattern.of(ops.LINEAR), model, "linear")
    assert isinstance(found, tq.Match)
    assert found.inputs("bias") == ()


def test_a_tensor_that_is_used_twice_stands_twice() -> None:
    """The sum of x and x has two operands, both x."""
    model = graph_of(lambda _, x: x + x, normal(2, 4))
    found = match_at(Pattern.of(ops.ADD), model, "add")
    assert isinstance(found, tq.Match)
    assert [node.name for node in found.inputs("input_activation")] == ["args_0", "args_0"]


def test_a_list_of_tensors_is_many_operands() -> None:
    """Each tensor that cat joins has the role, in order."""
    model = graph_of(lambda _, x, y: torch.cat([y, x, y]), normal(2, 4), normal(2, 4))
    found = match_at(Pattern.of(ops.CAT), model, "cat")
    assert isinstance(found, tq.Match)
    assert [node.name for node in found.inputs("input_activation")] == ["args_1", "args_0", "args_1"]


@pytest.mark.parametrize(("function", "value"), [(lambda _, x: x * 0.5, 0.5), (lambda _, x: x + 2, 2)])
def test_a_number_in_the_place_of_a_tensor_is_reported(function: Any, value: float) -> None:
    """A Python number is no operand; the match says where it stands."""
    model = graph_of(function, normal(2, 4))
    (node,) = calls(model, "aten.")
    pattern = Pattern.of(ops.MUL if "mul" in str(node.target) else ops.ADD)
    found = pattern.match(node)
    assert isinstance(found, tq.Match)
    assert found.scalars == ((node, 1, value),)
    assert len(found.operands) == 1


def rejected(found: tq.Match | tq.Reject) -> tuple[str, list[str]]:
    """Code and node names of a rejection."""
    assert isinstance(found, tq.Reject)
    assert found.text
    return found.code, [node.name for node in found.nodes]


def test_another_operator_is_rejected() -> None:
    """The code is stable, and the node is the one that does not fit."""
    model = graph_of(lambda self, x: torch.tanh(self.fc(x)), normal(2, 4), fc=nn.Linear(4, 4))
    assert rejected(match_at(LINEAR_RELU, model, "linear")) == ("not_the_operator", ["tanh"])
    assert rejected(match_at(LINEAR_RELU, model, "tanh")) == ("not_the_operator", ["tanh"])


def test_a_value_that_is_used_elsewhere_is_not_fused() -> None:
    """The rejection names the value and all of its users."""
    model = graph_of(lambda self, x: torch.relu(y := self.fc(x)) + y, normal(2, 4), fc=nn.Linear(4, 4))
    assert rejected(match_at(LINEAR_RELU, model, "linear")) == ("used_elsewhere", ["linear", "relu", "add"])


def test_the_rejection_names_the_operator_that_would_read_the_value_alone() -> None:
    """It is the next one of the pattern, whichever operators come behind it."""
    model = graph_of(lambda self, x: torch.relu(y := self.fc(x)) + y, normal(2, 4), fc=nn.Linear(4, 4))
    found = match_at(Pattern.of(ops.LINEAR, ops.RELU, ops.SIGMOID), model, "linear")
    assert isinstance(found, tq.Reject)
    assert found.text == "linear is used by more than relu, so it cannot be fused with it"


def test_a_value_that_is_returned_is_not_fused() -> None:
    """The output of the model is a user as well."""
    model = graph_of(lambda self, x: (torch.relu(y := self.fc(x)), y), normal(2, 4), fc=nn.Linear(4, 4))
    assert rejected(match_at(LINEAR_RELU, model, "linear"))[0] == "used_elsewhere"


def test_the_chain_runs_through_the_first_argument() -> None:
    """torch.sub(x, linear) is no linear followed by sub: the chain has to be what sub begins with."""
    model = graph_of(lambda self, x: x + self.fc(x), normal(2, 4), fc=nn.Linear(4, 4))
    pattern = Pattern.of(ops.LINEAR, ops.ADD)
    assert rejected(match_at(pattern, model, "linear")) == ("not_the_operator", ["add"])


@pytest.mark.parametrize("strict", [False, True])
def test_matching_does_not_depend_on_how_it_was_exported(strict: bool) -> None:
    """Strict and non-strict exports, and one without any module metadata, give the same match."""
    program = export(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), normal(2, 4), strict=strict)
    model = program.module()
    for node in model.graph.nodes:
        node.meta = {"val": node.meta.get("val")}
    assert isinstance(match_at(LINEAR_RELU, model, "linear"), tq.Match)


def test_keyword_arguments_are_found() -> None:
    """An operand is found by its name in the schema where it was not passed by position."""
    graph = torch.fx.Graph()
    x, weight, bias = (graph.placeholder(name) for name in ("x", "weight", "bias"))
    node = graph.call_function(torch.ops.aten.linear.default, (x,), {"bias": bias, "weight": weight})
    found = Pattern.of(ops.LINEAR).match(node)
    assert isinstance(found, tq.Match)
    assert [(source.name, role) for source, _, role in found.operands] == [
        ("x", "input_activation"),
        ("weight", "weight"),
        ("bias", "bias"),
    ]


def test_matching_never_writes() -> None:
    """Graph and metadata are the same after every pattern was tried at every node."""
    model = graph_of(
        lambda self, x: torch.cat([functional.relu(self.fc(x)) * 2, x + 1]), normal(2, 4), fc=nn.Linear(4, 4)
    )
    before = [(node.format_node(), dict(node.meta)) for node in model.graph.nodes]
    for operator in ops.OPERATORS:
        for node in model.graph.nodes:
            Pattern.of(operator).match(node)
    assert [(node.format_node(), dict(node.meta)) for node in model.graph.nodes] == before


def test_a_pattern_without_operators_is_refused() -> None:
    """The error shows how one is made."""
    with pytest.raises(tq.PatternError, match="nothing") as caught:
        Pattern.of(name="nothing")
    assert "OperatorPattern.of" in str(caught.value.remedy)


@pytest.mark.parametrize("index", [-1, 2])
def test_a_chain_has_the_operator_that_does_the_work(index: int) -> None:
    """An index counts from the first operator, and is one of the chain's."""
    with pytest.raises(tq.PatternError) as caught:
        Pattern.of(ops.LINEAR, ops.RELU, anchor_index=index)
    assert caught.value.got == f"2 operators, anchor_index={index}"


@pytest.mark.parametrize(
    "overload", ["linear", "aten.linear", "aten::linear", "torch.ops.aten.linear.default"]
)
def test_an_operator_lists_overloads(overload: str) -> None:
    """A name that could never match is refused when the operator is made."""
    with pytest.raises(tq.PatternError) as caught:
        ops.Operator("mine", (overload,), ())
    assert caught.value.got == overload


def test_names_follow_the_operators() -> None:
    """A pattern is named after its chain unless it has a name, and its roles are the first operator's."""
    assert LINEAR_RELU.name == "linear_relu"
    assert Pattern.of(ops.EMBEDDING, name="embedding_byte").name == "embedding_byte"
    assert LINEAR_RELU.roles == ("input_activation", "weight", "bias", "output_activation")
    assert Pattern.of(ops.ADD).roles == ("input_activation", "output_activation")


def test_an_operator_of_ones_own() -> None:
    """A backend can match an operator that torchquilt has no name for."""
    sine = ops.Operator("sine", ("aten.sin.default",), (ops.Operand("input_activation", 0, "self"),))
    model = graph_of(lambda _, x: torch.sin(x), normal(2, 4))
    found = match_at(Pattern.of(sine), model, "sin")
    assert isinstance(found, tq.Match)
    node: Node = found.anchor
    assert node.name == "sin"
