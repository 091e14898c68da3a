"""Random graphs of all rows, and pairs of rows, several in one program since C++ is compiled for each."""

from collections.abc import Iterator
from functools import cache
from random import Random

import pytest

from torchquilt.testing.drawing import batches, failures
from torchquilt.testing.graphs import Plan
from torchquilt.testing.pairs import kinds_of, pairs_of
from torchquilt.testing.process import Process
from torchquilt.testing.subject import Subject, installed

PRESETS = ("static_int8", "static_int8_per_channel", "dynamic_int8_per_channel")
STATIC, DYNAMIC = "static_int8_per_channel", "dynamic_int8_per_channel"
#: So many graphs are one program.
BATCH = 8


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    """A process for what may end it."""
    made = Process()
    yield made
    made.end()


@cache
def subject() -> Subject:
    """The backend, as it is installed."""
    return installed("inductor_x86")


@cache
def pairs(mode: str, preset: str) -> tuple[Plan, ...]:
    """All pairs of rows of a mode, in both orders and on one tensor."""
    kinds = kinds_of(subject().table, mode)
    return tuple(pairs_of(subject().table, preset, kinds, kinds))


def programs() -> Iterator[tuple[Plan, ...]]:
    """All pairs, in groups that are one program."""
    for plans in (pairs("static", STATIC), pairs("dynamic", DYNAMIC)):
        for first in range(0, len(plans), BATCH):
            yield plans[first : first + BATCH]


def check(plans: list[Plan], process: Process) -> None:
    """Lower and run graphs as one program, and list those that fail."""
    found = failures(plans, subject(), process, {})
    assert not found, "\n\n".join(found)


@pytest.mark.long
def test_a_sample_of_graphs_and_pairs(process: Process) -> None:
    """They compute what they were converted to, and their products are kernels of integers."""
    (drawn,) = batches(subject(), [STATIC], seed=0, count=4)
    check([*drawn, *Random(0).sample(pairs("static", STATIC), 4)], process)


@pytest.mark.exhaustive
def test_random_graphs(process: Process) -> None:
    """The same of more."""
    for plans in batches(subject(), PRESETS, seed=1, count=30):
        check(plans, process)


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", range(7))
def test_all_pairs(process: Process, number: int) -> None:
    """The same of all pairs."""
    found = [*programs()]
    assert len(found) == 7
    check([*found[number]], process)
