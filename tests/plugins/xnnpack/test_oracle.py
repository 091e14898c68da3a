"""Ours beside torchao's flow with ExecuTorch's quantizer: where the two do the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer as FullOracleQuantizer
from torch import nn
from torch.fx import GraphModule

from plugins.oracle import (
    Model,
    OracleQuantizer,
    are_bit_equal,
    describe,
    functional,
    oracle_config,
    oracle_quantizer,
    our_config,
    our_quantizer,
    outputs_of,
    per_token,
    quantized_by_oracle,
    quantized_by_us,
    steps_of,
)
from plugins.xnnpack.models import IN_PLACE, SAME, classifier, linear, two_blocks
from strategies import normal, sqnr
from torchquilt_xnnpack import XNNPACKQuantizer

# A model of which nothing is to be quantized is what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:Something was asked for in this model")

weights = pytest.mark.parametrize("is_per_channel", [False, True], ids=["per tensor", "per channel"])

# ----------------------------------------------------------------------------------------------------------
# Static
# ----------------------------------------------------------------------------------------------------------


@cache
def both(name: str, is_per_channel: bool) -> tuple[Model, GraphModule, GraphModule]:
    """A model of SAME, and what the oracle and we make of it."""
    torch.manual_seed(0)
    model = SAME[name]()
    theirs = quantized_by_oracle(model, oracle_quantizer(is_per_channel=is_per_channel))
    return model, theirs, quantized_by_us(model, our_quantizer(is_per_channel=is_per_channel))


@weights
@pytest.mark.parametrize("name", SAME)
def test_static_graphs_are_the_same(name: str, is_per_channel: bool) -> None:
    """Quantize and dequantize stand at the same edges with the same parameters between the same nodes."""
    _, theirs, ours = both(name, is_per_channel)

    assert describe(ours) == describe(theirs)
    assert steps_of(ours) == steps_of(theirs)


@weights
@pytest.mark.parametrize("name", SAME)
def test_static_outputs_are_bit_equal(name: str, is_per_channel: bool) -> None:
    """The two quantized models return the same numbers, to the last bit."""
    model, theirs, ours = both(name, is_per_channel)

    assert are_bit_equal(ours, theirs, model.inputs)


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_operators_are_quantized_like_the_others(name: str) -> None:
    """In-place operators have the quantize and dequantize of the oracle, and are written functionally.

    The oracle lets it write into what comes out of a dequantize, which is right only as long as no operator
    else reads the tensor; a test of the differences has a case where somebody does.
    """
    torch.manual_seed(0)
    model = IN_PLACE[name]()
    theirs = quantized_by_oracle(model, oracle_quantizer())
    ours = quantized_by_us(model, our_quantizer())

    assert describe(ours) == [functional(line) for line in describe(theirs)]
    assert describe(ours) != describe(theirs)
    assert are_bit_equal(ours, theirs, model.inputs)


def test_oracle_needs_no_patterns_for_training() -> None:
    """The patterns that the oracle here goes without do not change what ExecuTorch's quantizer does."""
    torch.manual_seed(0)
    model = SAME["conv bn relu"]()
    full = quantized_by_oracle(model, FullOracleQuantizer().set_global(oracle_config()))

    assert describe(full) == describe(quantized_by_oracle(model, oracle_quantizer()))


# ----------------------------------------------------------------------------------------------------------
# Dynamic
# ----------------------------------------------------------------------------------------------------------

DYNAMIC = {
    name: SAME[name]
    for name in (
        "linear",
        "linear without bias",
        "linear relu",
        "linear of three dimensions",
        "perceptron with dropout",
        "shared linear",
        "attention",
        "gate",
        "float between linears",
        "views between linears",
        "embedding in float",
        "conv1d bn relu",  # stays in float
        "cat of three",  # the linears before it do not
    )
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_is_per_token_at_the_places_of_the_oracle(name: str) -> None:
    """The same tensors are quantized, and the weights equally; the activations per token, not per tensor.

    XNNPACK finds parameters for each row, whatever the graph says, so per tensor would not be what runs.
    """
    torch.manual_seed(0)
    model = DYNAMIC[name]()
    theirs = quantized_by_oracle(model, oracle_quantizer(is_dynamic=True))
    ours = quantized_by_us(model, our_quantizer(is_dynamic=True))

    assert describe(ours) == [per_token(line) for line in describe(theirs)]


def test_dynamic_of_one_token_is_that_of_the_oracle() -> None:
    """With one row a token is the tensor, and then the two agree as far as float32 reaches."""
    torch.manual_seed(0)
    model = Model(nn.Sequential(linear(), nn.ReLU(), linear()), (normal(1, 6),))
    (theirs,) = outputs_of(quantized_by_oracle(model, oracle_quantizer(is_dynamic=True)), model.inputs)
    (ours,) = outputs_of(quantized_by_us(model, our_quantizer(is_dynamic=True)), model.inputs)

    assert sqnr(theirs, ours) > 100


# ----------------------------------------------------------------------------------------------------------
# What is asked for, and where
# ----------------------------------------------------------------------------------------------------------

LINEAR = torch.ops.aten.linear.default
ADD = torch.ops.aten.add.Tensor

#: A model, and how either side is asked for the same.
INTENTS: dict[str, tuple[Callable[[], Model], Callable[[Any], Any], Callable[[XNNPACKQuantizer], Any]]] = {
    "a type with one config, the rest with another": (
        classifier,
        lambda q: q.set_module_type(nn.Linear, oracle_config(is_per_channel=False)).set_global(
            oracle_config()
        ),
        lambda q: q.set_object_type(nn.Linear, our_config(is_per_channel=False)).set_global(our_config()),
    ),
    "a type dynamically, the rest statically": (
        classifier,
        lambda q: q.set_module_type(nn.Linear, oracle_config(is_dynamic=True)).set_global(oracle_config()),
        lambda q: q.set_object_type(nn.Linear, our_config(is_dynamic=True)).set_global(our_config()),
    ),
    "a module dynamically, the rest statically": (
        two_blocks,
        lambda q: q.set_module_name("first", oracle_config(is_dynamic=True)).set_global(oracle_config()),
        lambda q: q.set_module_name("first", our_config(is_dynamic=True)).set_global(our_config()),
    ),
    "one module dynamically, one with other weights": (
        two_blocks,
        lambda q: q.set_module_name("second.2", oracle_config(is_dynamic=True)).set_module_name(
            "first.2", oracle_config(is_per_channel=False)
        ),
        lambda q: q.set_module_name("second.2", our_config(is_dynamic=True)).set_module_name(
            "first.2", our_config(is_per_channel=False)
        ),
    ),
    "one layer with one config, the rest with another": (
        two_blocks,
        lambda q: q.set_module_name("first.0", oracle_config()).set_global(
            oracle_config(is_per_channel=False)
        ),
        lambda q: q.set_module_name("first.0", our_config()).set_global(our_config(is_per_channel=False)),
    ),
    "an operator dynamically": (
        classifier,
        lambda q: q.set_operator_type(LINEAR, oracle_config(is_dynamic=True)),
        lambda q: q.set_object_type(LINEAR, our_config(is_dynamic=True)),
    ),
    "an operator without a weight": (
        two_blocks,
        lambda q: q.set_operator_type(ADD, oracle_config()),
        lambda q: q.set_object_type(ADD, our_config()),
    ),
    "a filter that lets nothing through": (
        two_blocks,
        lambda q: q.set_global(oracle_config()).set_filter_function(lambda node: False),
        lambda q: q.set_global(our_config()).set_filter_function(lambda node: False),
    ),
}


@pytest.mark.parametrize("name", INTENTS)
def test_rules_are_followed_as_by_the_oracle(name: str) -> None:
    """Asked for the same at the same modules, types and operators the two quantize the same."""
    torch.manual_seed(0)
    make, ask_oracle, ask_us = INTENTS[name]
    model = make()
    theirs = quantized_by_oracle(model, ask_oracle(OracleQuantizer()))
    ours = quantized_by_us(model, ask_us(XNNPACKQuantizer()))

    assert describe(ours) == [per_token(line) for line in describe(theirs)]
