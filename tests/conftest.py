"""Settings that every test runs under."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Two workers share the cores, and a sum over threads need not add up in the same order twice.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shared machine pauses at any moment, so time says nothing. In CI the same examples are drawn each time;
# ``--deep`` draws many more.
settings.register_profile("default", deadline=None)
settings.register_profile("deep", deadline=None, max_examples=10_000)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--deep``: many more examples of everything that is drawn."""
    parser.addoption("--deep", action="store_true", help="draw many more examples (takes hours)")


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported, since settings are read there."""
    if config.getoption("--deep"):
        settings.load_profile("deep")


@pytest.fixture(autouse=True, scope="session")
def _invariants() -> Iterator[None]:
    """The invariants of graphs are checked after every pass that any test runs."""
    from torchquilt.graph.invariants import checking_invariants
    from torchquilt.pt2e.invariants import INVARIANTS

    with checking_invariants(INVARIANTS):
        yield
