"""Random graphs of all rows, asked for statically, on the runtime."""

from __future__ import annotations

import pytest

from plugins.xnnpack.graphs import STATIC, check_drawn, process
from torchquilt.testing.process import Process

__all__ = ["process"]  # a fixture


def test_graphs_run_as_they_were_converted(process: Process) -> None:
    """Program and Q/DQ model agree within rounding, as do kernels and ledger; Q/DQ is near float."""
    check_drawn(process, STATIC, seed=0, count=6)


@pytest.mark.long
def test_more_graphs_run_as_they_were_converted(process: Process) -> None:
    """The same of more than the short run has time for."""
    for seed, count in ((0, 12), (100, 28)):
        check_drawn(process, STATIC, seed, count)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(1, 15))
def test_many_graphs_run_as_they_were_converted(process: Process, seed: int) -> None:
    """The same of many more; a seed that fails is printed, with the smallest graph that does."""
    check_drawn(process, STATIC, seed, count=50)
