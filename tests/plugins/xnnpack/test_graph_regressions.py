"""Graphs that were wrong once stay right."""

from __future__ import annotations

import pytest

from plugins.xnnpack.graph_regressions import REGRESSIONS
from plugins.xnnpack.graphs import outcome, process
from torchquilt.testing.process import Process

__all__ = ["process"]  # a fixture


#: Found and not yet right: the runtime refuses the shapes of these images.
_OPEN = ("a padded image in channels_last", "a linear of an image in channels_last")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xfail(reason="it fails in the runtime") if name in _OPEN else ())
        for name in REGRESSIONS
    ],
)
def test_what_was_wrong_is_right(process: Process, name: str) -> None:
    """Lowered and run, it computes what it was converted to."""
    found = outcome(process, REGRESSIONS[name])
    assert found.is_tried
    assert not found.problems
