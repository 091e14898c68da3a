"""Every kind of row behind every other, and every two on one tensor, lowered and run."""

from __future__ import annotations

from functools import cache

import pytest

from plugins.xnnpack.graphs import check_plans, process, subject
from torchquilt.testing.graphs import Plan
from torchquilt.testing.pairs import kinds_of, pairs_of
from torchquilt.testing.process import Process

__all__ = ["process"]  # a fixture

_PARTS = 20
#: Of each so many pairs one is tried in the long run.
_SAMPLE = 180


@cache
def _pairs(mode: str) -> tuple[Plan, ...]:
    """All pairs, in both orders, that are asked for statically or dynamically."""
    table = subject().table
    static, dynamic = kinds_of(table, "static"), kinds_of(table, "dynamic")
    if mode == "static":
        return tuple(pairs_of(table, "static_int8_per_channel", static, static))
    ask = "dynamic_int8_per_channel"
    return (*pairs_of(table, ask, dynamic, static), *pairs_of(table, ask, static, dynamic))


@pytest.mark.long
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_a_sample_of_pairs_is_right_together(process: Process, mode: str) -> None:
    """They compute what they were converted to: each is right, or was refused beforehand."""
    check_plans(process, _pairs(mode)[::_SAMPLE])


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(_PARTS))
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_all_pairs_are_right_together(process: Process, mode: str, part: int) -> None:
    """The same of all."""
    check_plans(process, _pairs(mode)[part::_PARTS])
