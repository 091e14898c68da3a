"""Rows are right together: small graphs of all of them are drawn, quantized, lowered, run and compared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from torchquilt.testing.drawing import batches, configs_by_name, failures
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
    given = pytestconfig.stash[GIVEN_LOWERINGS]
    drawn = batches(subject, [*configs_by_name(subject)], graph_seed, graph_count)
    found = [failure for plans in drawn for failure in failures(plans, subject, process, given)]
    if found:
        pytest.fail("\n\n".join([f"{subject.name}, seed {graph_seed}:", *found]), pytrace=False)
