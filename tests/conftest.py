"""Settings that every test runs under."""

import os
import zlib
from collections.abc import Iterator
from typing import Any

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


@pytest.hookimpl(tryfirst=True)
def pytest_collectstart(collector: pytest.Collector) -> None:
    """A file draws the same numbers on import, whichever files were imported before it."""
    _draw_as(collector.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    """A fixture draws the same numbers, whichever test asks for it first."""
    _draw_as(f"{fixturedef.baseid} {fixturedef.argname} {getattr(request, 'param_index', 0)}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """A test draws the same weights and inputs alone as behind any others."""
    _draw_as(item.nodeid)


def _draw_as(name: str) -> None:
    """Seed torch's random numbers by a name: by one number for all, weights would equal inputs."""
    import torch

    # Not torch.manual_seed, which asks for every kind of device and takes a hundred times as long.
    torch.default_generator.manual_seed(zlib.crc32(name.encode()))


@pytest.fixture(autouse=True, scope="session")
def _invariants() -> Iterator[None]:
    """The invariants of graphs are checked after every pass that any test runs."""
    from torchquilt.graph.invariants import checking_invariants
    from torchquilt.pt2e.invariants import INVARIANTS

    with checking_invariants(INVARIANTS):
        yield
