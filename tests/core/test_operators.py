"""Every operator that torchquilt knows can be called by the kit, and is exported under one of its names."""

import importlib

import pytest
import torch

from torchquilt.backend import OPERATORS
from torchquilt.graph.node_values import overload_name
from torchquilt.support.object_type import object_type
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
