"""Rewritten claims are annotated anew, by rows of the same table, within alike claims."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from torch.fx import GraphModule

import torchquilt as tq
from strategies import Fn, annotated, calls, export, normal
from torchquilt.backend import FLOAT32, Constraint, Match, OperatorPattern, write_as
from torchquilt.backend import operators as ops

SPEC = tq.AllowedSpec("int8", -128, 127, ("per_tensor",), symmetric=False)
SPECS = {"input_activation": (SPEC,), "output_activation": (SPEC,)}
CONFIG = tq.QuantizationConfig(
    input_activation=tq.QuantizationSpec("int8"), output_activation=tq.QuantizationSpec("int8")
)
NARROW = attrs.evolve(CONFIG, output_activation=tq.QuantizationSpec("int8", -100, 100))
NEG, TANH = (
    ops.Operator(name, (f"aten.{name}.default",), (ops.Operand("input_activation", 0, "self"),))
    for name in ("neg", "tanh")
)


def row(*pattern: ops.Operator, **rest: Any) -> tq.SupportRow:
    """A row for a chain of operators."""
    return tq.SupportRow(OperatorPattern.of(*pattern), SPECS, constraints=(FLOAT32,), **rest)


def as_relu(_: GraphModule, match: Match) -> None:
    """Write a sigmoid as another operator."""
    write_as(match.anchor, torch.ops.aten.relu.default, match.anchor.args[0])


def as_neg(_: GraphModule, match: Match) -> None:
    """Write a tanh as another operator."""
    write_as(match.anchor, torch.ops.aten.neg.default, match.anchor.args[0])


#: Both operators are rewritten, and a longer row takes the two forms as one.
TABLE = tq.SupportTable(
    "toy",
    (
        row(ops.SIGMOID, rewrite=as_relu),
        row(TANH, rewrite=as_neg),
        row(ops.RELU),
        row(NEG),
        row(ops.RELU, NEG),
    ),
)
X = normal(2, 6)
BOTH = export(Fn(lambda _, x: torch.tanh(torch.sigmoid(x))), X)
#: The second operator is that of a form, and no rewrite makes it.
FIRST = export(Fn(lambda _, x: torch.neg(torch.sigmoid(x))), X)


def toy(**configs: Any) -> tq.PatternQuantizer:
    """A quantizer of this table with a config for each of some operators."""
    quantizer = tq.PatternQuantizer(TABLE)
    for name, config in configs.items():
        quantizer.set_object_type(getattr(torch.ops.aten, name).default, config)
    return quantizer


@pytest.mark.parametrize(
    ("program", "quantizers", "patterns"),
    [
        pytest.param(BOTH, [toy(sigmoid=CONFIG, tanh=CONFIG)], ["relu_neg", "relu_neg"], id="alike"),
        pytest.param(BOTH, [toy(sigmoid=CONFIG, tanh=NARROW)], ["relu", "neg"], id="two configs"),
        pytest.param(BOTH, [toy(sigmoid=CONFIG), toy(tanh=CONFIG)], ["relu", "neg"], id="two quantizers"),
        pytest.param(FIRST, [toy(sigmoid=CONFIG)], ["relu", None], id="one is not claimed"),
    ],
)
def test_forms_of_two_claims_are_one_match_only_if_the_claims_are_alike(
    program: Any, quantizers: list[tq.Quantizer], patterns: list[str | None]
) -> None:
    """One row takes two forms together if the same quantizer claimed both with the same config."""
    prepared = tq.prepare_pt2e(program, tq.ComposableQuantizer(quantizers))
    found = annotated(prepared)
    names = [found[node.name].pattern if node.name in found else None for node in calls(prepared, "aten")]
    assert names == patterns


def test_a_form_meets_each_constraint_of_its_row() -> None:
    """As a match that a user wrote does."""
    never = Constraint("never", "it is another one", lambda match: False)
    relu = tq.SupportRow(OperatorPattern.of(ops.RELU), SPECS, constraints=(FLOAT32, never))
    table = tq.SupportTable("toy", (row(ops.SIGMOID, rewrite=as_relu), relu))
    quantizer = tq.PatternQuantizer(table).set_object_type(torch.ops.aten.sigmoid.default, CONFIG)
    with pytest.raises(tq.QuantizerError, match="writes a form that no row"):
        tq.prepare_pt2e(FIRST, quantizer)
