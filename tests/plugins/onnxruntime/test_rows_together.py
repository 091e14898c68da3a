"""Rows of the table together on the runtime: random graphs, pairs, and operators between layers."""

from __future__ import annotations

import pytest

from plugins.graphs import STATIC, check_drawn, check_plans, process, static_pairs, subject
from torchquilt.testing.between import Operators, batches, differences
from torchquilt.testing.process import Process

__all__ = ["process"]  # a fixture

pytestmark = pytest.mark.long

OTHERS = ("dynamic_int8", "dynamic_int8_per_channel", "weight_only_int8", "weight_only_int4")
_PARTS = 40
#: Of each so many pairs one is tried in every long run.
_SAMPLE = 600
#: Data movement, also at the end of a program, which is what the second layer's output is not.
BETWEEN = Operators(("permute", "select", "chunk", "pad with zeros", "roll"))


@pytest.mark.parametrize("names", [STATIC, OTHERS], ids=["static", "others"])
def test_a_sample_of_random_graphs_is_right(process: Process, names: tuple[str, ...]) -> None:
    """Program and Q/DQ model agree within rounding, as do kernels and ledger; Q/DQ is near float."""
    check_drawn("onnxruntime", process, names, seed=0, count=8)


def test_a_sample_of_pairs_is_right_together(process: Process) -> None:
    """They compute what they were converted to."""
    check_plans("onnxruntime", process, static_pairs("onnxruntime")[::_SAMPLE])


def test_operators_between_layers_run_as_the_ledger_says() -> None:
    """Operators in float run in float, quantized ones as integers, and so do the layers behind them."""
    assert list(differences(subject("onnxruntime"), "onnxruntime", BETWEEN)) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(1, 31))
def test_many_random_graphs_are_right(process: Process, seed: int) -> None:
    """The same of many more; a seed that fails is printed, with the smallest graph that does."""
    check_drawn("onnxruntime", process, (*STATIC, *OTHERS), seed, count=10)


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(_PARTS))
def test_all_pairs_are_right_together(process: Process, part: int) -> None:
    """The same of all."""
    check_plans("onnxruntime", process, static_pairs("onnxruntime")[part::_PARTS])


@pytest.mark.exhaustive
@pytest.mark.parametrize("operators", batches(16), ids=lambda operators: operators.labels[0])
def test_all_operators_between_layers_run_as_the_ledger_says(operators: Operators) -> None:
    """The same of all operators."""
    assert list(differences(subject("onnxruntime"), "onnxruntime", operators)) == []
