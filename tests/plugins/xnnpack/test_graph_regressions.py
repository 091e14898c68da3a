"""Graphs that were wrong once stay right."""

from __future__ import annotations

import pytest

from plugins.xnnpack.graph_regressions import REGRESSIONS
from plugins.xnnpack.graphs import outcome, process
from torchquilt.testing.process import Process

pytestmark = pytest.mark.long

__all__ = ["process"]  # a fixture


@pytest.mark.parametrize("name", REGRESSIONS)
def test_what_was_wrong_is_right(process: Process, name: str) -> None:
    """Lowered and run, it computes what it was converted to."""
    found = outcome(process, REGRESSIONS[name])
    assert found.is_tried
    assert not found.problems
