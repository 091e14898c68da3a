"""One test for each row, and the fixtures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
import torch

from torchquilt.support.operators import OPERATORS
from torchquilt.support.table import SupportRow
from torchquilt.testing.bench import Bench
from torchquilt.testing.coverage import PROPERTY
from torchquilt.testing.lowering import Lowering
from torchquilt.testing.plugin import LOWERINGS, SUBJECT
from torchquilt.testing.subject import Subject, row_id

_GRAPHS_OF_A_TEST = 10

#: Says what the column of the coverage table shows for the row that a test is about.
NoteDown: TypeAlias = Callable[[str, str], None]


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to run without a backend, once and before anything is collected."""
    # The options and not what was loaded for them: conftests are configured before the plugin.
    if not any(config.getoption(f"--torchquilt-{one}", None) for one in ("backend", "quantizer")):
        pytest.exit("Say what to test: --torchquilt-backend=NAME", pytest.ExitCode.USAGE_ERROR)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test for each row, each lowering of a row that can be checked, each operator without a row."""
    subject = metafunc.config.stash[SUBJECT]
    if "target" in metafunc.fixturenames:
        checked = metafunc.config.stash[LOWERINGS]
        pairs = [(row, target) for row in subject.rows for target in row.targets if target in checked]
        ids = [f"{row_id(row)}-{target}" for row, target in pairs]
        metafunc.parametrize(("row", "target"), pairs, ids=ids)
    elif "row" in metafunc.fixturenames:
        metafunc.parametrize("row", subject.rows, ids=row_id)
    if "claimed_target" in metafunc.fixturenames:
        metafunc.parametrize("claimed_target", sorted({t for row in subject.rows for t in row.targets}))
    if "graph_seed" in metafunc.fixturenames:
        metafunc.parametrize(("graph_seed", "graph_count"), _chunks_of_graphs(metafunc.config))
    if "operator" in metafunc.fixturenames:
        begun = {overload for row in subject.rows for overload in row.pattern.operators[0].overloads}
        others = [operator for operator in OPERATORS if begun.isdisjoint(operator.overloads)]
        metafunc.parametrize("operator", others, ids=lambda operator: operator.name)


def _chunks_of_graphs(config: pytest.Config) -> list[Any]:
    """Seed and number of graphs for each test, small enough that several workers share them."""
    count, first = config.getoption("--torchquilt-graphs"), config.getoption("--torchquilt-seed")
    sizes = [min(_GRAPHS_OF_A_TEST, count - begun) for begun in range(0, count, _GRAPHS_OF_A_TEST)]
    return [pytest.param(first + n, size, id=f"seed {first + n}") for n, size in enumerate(sizes)]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums over threads need not add up in the same order twice."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def subject(pytestconfig: pytest.Config) -> Subject:
    """The backend under test."""
    return pytestconfig.stash[SUBJECT]


@pytest.fixture(scope="session")
def bench(subject: Subject) -> Bench:
    """The backend with models for its rows."""
    return Bench(subject)


@pytest.fixture(scope="session")
def lowerings(pytestconfig: pytest.Config) -> dict[str, Lowering]:
    """Lowering target → what lowers and runs a model there."""
    return pytestconfig.stash[LOWERINGS]


@pytest.fixture
def note(row: SupportRow, record_property: Callable[[str, Any], None]) -> NoteDown:
    """A function that says what a column of the coverage table shows for the row."""

    def write(column: str, text: str = "") -> None:
        record_property(PROPERTY, (row_id(row), column, text))

    return write
