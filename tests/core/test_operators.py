"""Every operator that torchquilt knows can be called by the kit, and is exported under one of its names."""

import importlib

import pytest
import torch

from torchquilt.backend import OPERATORS
from torchquilt.graph.node_values import overload_name
from torchquilt.support import operators
from torchquilt.support.data_movement import moves_data_only
from torchquilt.support.object_type import object_type
from torchquilt.support.operators import Operator
from torchquilt.testing.examples import Step
from torchquilt.testing.operators import Sizes, activations_of, calls_of


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_the_kit_calls_it(operator):
    """The kit has an activation and a call for it, and export leaves one of its overloads."""
    sizes = Sizes()
    activation = activations_of(operator, sizes)[0]
    call = calls_of(operator, activation, sizes)[0]
    exported = torch.export.export(Step(call).eval(), (activation, *call.extras)).module()
    assert any(overload_name(node) in operator.overloads for node in exported.graph.nodes)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_a_rule_may_name_it_by_each_of_its_names(operator):
    """A name is that of something that is there, and it means this operator."""
    for name in (*operator.functionals, *operator.modules):
        module, _, attribute = name.rpartition(".")
        kind = object_type(getattr(importlib.import_module(module), attribute))
        assert kind.name == name or set(kind.overloads) & set(operator.overloads)


def test_each_constant_has_the_name_of_its_operator():
    """Patterns, capabilities and rows are named after it."""
    named = {name: value for name, value in vars(operators).items() if isinstance(value, Operator)}
    assert {name.lower(): value.name for name, value in named.items()} == {
        value.name: value.name for value in named.values()
    }
    assert set(named.values()) == set(OPERATORS)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.overloads[0])
def test_operands_are_those_of_the_schema(operator):
    """Each overload is there. The first one's arguments have these names, at these positions."""
    for overload in operator.overloads:
        namespace, packet, name = overload.split(".")
        schema = getattr(getattr(getattr(torch.ops, namespace), packet), name)._schema
        for operand in operator.operands:
            assert 0 <= operand.position < len(schema.arguments)
            argument = schema.arguments[operand.position]
            assert overload != operator.overloads[0] or argument.name == operand.keyword
            kinds = ("List[Tensor]",) if operand.is_list else ("Tensor", "Optional[Tensor]", "number")
            assert str(argument.type) in kinds


#: ``where`` chooses between two tensors, ``to`` may round to another dtype, an embedding reads a weight.
SEEMS_TO_MOVE = (operators.WHERE, operators.TO, operators.EMBEDDING)


@pytest.mark.parametrize(
    "operator",
    [operator for operator in OPERATORS if operator not in SEEMS_TO_MOVE],
    ids=lambda operator: operator.overloads[0],
)
def test_an_operator_that_moves_data_returns_elements_of_what_it_reads(operator):
    """And one that does not computes others."""
    sizes = Sizes()
    activation = activations_of(operator, sizes)[0]
    call = calls_of(operator, activation, sizes)[0]
    result = Step(call).eval()(activation, *call.extras)
    read = torch.cat([tensor.flatten() for tensor in (activation, *call.extras)])
    assert operator.moves_data is bool(torch.isin(result, read).all())


@pytest.mark.parametrize(
    ("overload", "arguments", "moves"),
    [
        (torch.ops.aten.view.default, ([-1],), True),
        (torch.ops.aten.relu.default, (), False),
        (torch.ops.aten.dropout.default, (0.5, False), True),
        (torch.ops.aten.dropout.default, (0.5, True), False),
    ],
)
def test_a_call_moves_data_only_if_its_operator_does_and_draws_nothing(overload, arguments, moves):
    """An input of the graph is no call."""
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    assert moves_data_only(graph.call_function(overload, (x, *arguments))) is moves
    assert not moves_data_only(x)


def test_functions_outside_of_the_table_have_the_name_that_people_import():
    """Those of the table are found by it, methods of tensors among them."""
    assert object_type(torch.erf).name == "torch.erf"
    assert object_type(torch.Tensor.relu) == object_type(torch.relu)
    packet = object_type(torch.ops.aten.erf)
    assert (packet.kind, packet.name) == ("overload", "aten.erf")
    assert "aten.erf.default" in packet.overloads
