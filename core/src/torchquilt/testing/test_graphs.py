"""Rows are right together: small graphs of all of them are drawn, quantized, lowered, run and compared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from torchquilt.testing.drawing import batches, configs_by_name, failures
from torchquilt.testing.limits import dtypes_of
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
    _check(subject, process, pytestconfig, graph_seed, graph_count)


#: Of the graphs in float32 so many as one in half precision.
_HALF = 4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_graphs_of_half_precision_compute_what_they_were_converted_to(
    graph_seed: int,
    graph_count: int,
    dtype: str,
    subject: Subject,
    process: Process,
    pytestconfig: pytest.Config,
) -> None:
    """The same of fewer graphs in a precision that some row says it takes."""
    constraints = {constraint for row in subject.rows for constraint in row.constraints}
    if not any(dtype in dtypes_of(constraint) for constraint in constraints):
        pytest.skip(f"no row says that it takes {dtype}")
    _check(subject, process, pytestconfig, graph_seed, -(-graph_count // _HALF), dtype)


def _check(
    subject: Subject, process: Process, config: pytest.Config, seed: int, count: int, dtype: str = "float32"
) -> None:
    given = config.stash[GIVEN_LOWERINGS]
    drawn = batches(subject, [*configs_by_name(subject)], seed, count, dtype=dtype)
    found = [failure for plans in drawn for failure in failures(plans, subject, process, given)]
    if found:
        pytest.fail("\n\n".join([f"{subject.name}, {dtype}, seed {seed}:", *found]), pytrace=False)
