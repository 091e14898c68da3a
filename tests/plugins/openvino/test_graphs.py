"""Random graphs of all rows, and pairs of rows, on OpenVINO's runtime."""

from __future__ import annotations

from functools import cache

import pytest

from plugins.openvino.graphs import check_drawn, check_plans, process, subject
from torchquilt.testing.graphs import Plan
from torchquilt.testing.pairs import kinds_of, pairs_of
from torchquilt.testing.process import Process

__all__ = ["process"]  # a fixture

pytestmark = pytest.mark.long

_PARTS = 20
#: Of each so many pairs one is tried in every long run.
_SAMPLE = 40


@cache
def _pairs() -> tuple[Plan, ...]:
    """All pairs, in both orders."""
    kinds = kinds_of(subject().table, "static")
    return tuple(pairs_of(subject().table, "static_int8_per_channel", kinds, kinds))


def test_graphs_run_as_they_were_converted(process: Process) -> None:
    """Program and Q/DQ model agree within rounding, as do kernels and ledger; Q/DQ is near float."""
    check_drawn(process, seed=0, count=24)


def test_a_sample_of_pairs_is_right_together(process: Process) -> None:
    """They compute what they were converted to."""
    check_plans(process, _pairs()[::_SAMPLE])


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(1, 8))
def test_many_graphs_run_as_they_were_converted(process: Process, seed: int) -> None:
    """The same of many more; a seed that fails is printed, with the smallest graph that does."""
    check_drawn(process, seed, count=40)


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(_PARTS))
def test_all_pairs_are_right_together(process: Process, part: int) -> None:
    """The same of all."""
    check_plans(process, _pairs()[part::_PARTS])
