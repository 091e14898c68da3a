"""Rows are right together: small graphs of all of them are drawn, quantized, lowered, run and compared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, event, given, seed, settings

from torchquilt.testing.drawing import NOT_TRIED, configs_by_name, plans, tried
from torchquilt.testing.graphs import Plan
from torchquilt.testing.plugin import GIVEN_LOWERINGS
from torchquilt.testing.process import Process
from torchquilt.testing.subject import Subject


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    """A process for what may end it."""
    made = Process()
    yield made
    made.end()


def test_graphs_compute_what_they_were_converted_to(
    graph_seed: int, graph_count: int, subject: Subject, process: Process, pytestconfig: pytest.Config
) -> None:
    """Chains, branches and reused layers of all rows run as they were converted, and near the float model."""
    given_lowerings = pytestconfig.stash[GIVEN_LOWERINGS]

    @seed(graph_seed)
    @settings(
        max_examples=graph_count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(plans(subject, [*configs_by_name(subject)]))
    def try_one(plan: Plan) -> None:
        is_installed = subject.backend is not None
        (outcome,) = process.call(tried, [plan], subject.name, is_installed, given_lowerings)
        event("not tried" if outcome == NOT_TRIED else "tried")
        assert not outcome.problems, "\n".join(
            [f"{subject.name} does not do what it converts:", *outcome.problems]
        )

    try_one()
