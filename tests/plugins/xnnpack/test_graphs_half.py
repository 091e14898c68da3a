"""Random graphs and pairs of rows in half precision on the runtime."""

from __future__ import annotations

from functools import cache

import pytest

from plugins.xnnpack.graphs import DYNAMIC, check_drawn, check_plans, process, subject
from torchquilt.testing.graphs import Plan
from torchquilt.testing.pairs import kinds_of, pairs_of
from torchquilt.testing.process import Process

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

__all__ = ["process"]  # a fixture

ASKS = (*DYNAMIC, "dynamic_int8_weight_int4")

_PARTS = 10
#: Of the pairs one in so many is tried in every run.
_SAMPLE = 60


def test_graphs_run_as_they_were_converted(process: Process) -> None:
    """Program and Q/DQ model agree within rounding; layers behind a cast to float32 are of float32."""
    check_drawn(process, ASKS, seed=0, count=16, dtype="float16")


@cache
def _pairs() -> tuple[Plan, ...]:
    """All pairs of a dynamic row and any, in both orders."""
    table = subject().table
    static, dynamic = kinds_of(table, "static"), kinds_of(table, "dynamic")
    orders = (dynamic, static), (static, dynamic)
    return tuple(plan for order in orders for plan in pairs_of(table, DYNAMIC[1], *order, dtype="float16"))


def test_a_sample_of_pairs_is_right_together(process: Process) -> None:
    """They compute what they were converted to: each is right, or was refused beforehand."""
    check_plans(process, _pairs()[::_SAMPLE])


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(1, 9))
def test_many_graphs_run_as_they_were_converted(process: Process, seed: int) -> None:
    """The same of many more."""
    check_drawn(process, ASKS, seed, count=50, dtype="float16")


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(_PARTS))
def test_all_pairs_are_right_together(process: Process, part: int) -> None:
    """The same of all pairs."""
    check_plans(process, _pairs()[part::_PARTS])
