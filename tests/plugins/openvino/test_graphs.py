"""Random graphs of all rows, pairs of rows, and operators between layers, on OpenVINO's runtime."""

from __future__ import annotations

import pytest

from plugins.graphs import check_drawn, check_plans, process, static_pairs, subject
from torchquilt.testing.between import Operators, batches, differences
from torchquilt.testing.process import Process

__all__ = ["process"]  # a fixture

pytestmark = pytest.mark.long

ASKED = ("static_int8", "static_int8_per_channel", "weight_only_int8")
_PARTS = 20
#: Of each so many pairs one is tried in every long run.
_SAMPLE = 200
#: Moved in floats and quantized again; padded; pooled over the end; what OpenVINO does not compile.
BETWEEN = Operators(("mish", "pad with zeros", "repeat", "roll"))
BETWEEN_IMAGES = Operators(
    ("max_pool2d in ceil mode", "mish of an image", "pad of an image", "roll of an image")
)


def test_graphs_run_as_they_were_converted(process: Process) -> None:
    """Program and Q/DQ model agree within rounding, as do kernels and ledger; Q/DQ is near float."""
    check_drawn("openvino", process, ASKED, seed=0, count=16)


def test_a_sample_of_pairs_is_right_together(process: Process) -> None:
    """They compute what they were converted to."""
    check_plans("openvino", process, static_pairs("openvino")[::_SAMPLE])


@pytest.mark.parametrize("operators", [BETWEEN, BETWEEN_IMAGES], ids=["matrices", "images"])
def test_operators_between_layers_run_as_the_ledger_says(operators: Operators) -> None:
    """Operators in float run in float, quantized ones as integers, and so do the layers behind them."""
    assert list(differences(subject("openvino"), "openvino", operators)) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(1, 31))
def test_many_graphs_run_as_they_were_converted(process: Process, seed: int) -> None:
    """The same of many more; a seed that fails is printed, with the smallest graph that does."""
    check_drawn("openvino", process, ASKED, seed, count=10)


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(_PARTS))
def test_all_pairs_are_right_together(process: Process, part: int) -> None:
    """The same of all."""
    check_plans("openvino", process, static_pairs("openvino")[part::_PARTS])


@pytest.mark.exhaustive
@pytest.mark.parametrize("operators", batches(16), ids=lambda operators: operators.labels[0])
def test_all_operators_between_layers_run_as_the_ledger_says(operators: Operators) -> None:
    """The same of all operators."""
    assert list(differences(subject("openvino"), "openvino", operators)) == []
