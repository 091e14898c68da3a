"""Graphs of XNNPACK's rows on the runtime, for random graphs, pairs and regressions."""

from __future__ import annotations

from collections.abc import Sequence

from plugins import graphs
from plugins.graphs import STATIC, process
from torchquilt.testing.drawing import Outcome, tried
from torchquilt.testing.graphs import Plan
from torchquilt.testing.process import Process
from torchquilt.testing.subject import Subject

__all__ = ["DYNAMIC", "STATIC", "check_drawn", "check_plans", "outcome", "process", "subject"]

DYNAMIC = ("dynamic_int8", "dynamic_int8_per_channel")


def subject() -> Subject:
    """XNNPACK's backend, as it is installed."""
    return graphs.subject("xnnpack")


def check_drawn(
    process: Process,
    names: Sequence[str],
    seed: int,
    count: int,
    *,
    mixed: bool = False,
    dtype: str = "float32",
) -> None:
    """Draw graphs, and fail with the smallest ones that are not right; see :func:`plugins.graphs`."""
    graphs.check_drawn("xnnpack", process, names, seed, count, mixed=mixed, dtype=dtype)


def check_plans(process: Process, plans: Sequence[Plan]) -> None:
    """Try plans as they are, many in one program, and fail with those that are not right."""
    graphs.check_plans("xnnpack", process, plans)


def outcome(process: Process, plan: Plan) -> Outcome:
    """Result of one plan."""
    (found,) = process.call(tried, [plan], "xnnpack", True, {})
    assert isinstance(found, Outcome)
    return found
