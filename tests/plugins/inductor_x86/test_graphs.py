"""Random graphs of all rows, several in one program since C++ is compiled for each."""

from collections.abc import Iterator

import pytest

from torchquilt.testing.drawing import batches, failures
from torchquilt.testing.process import Process
from torchquilt.testing.subject import Subject, installed

PRESETS = ("static_int8", "static_int8_per_channel", "dynamic_int8_per_channel")


@pytest.fixture(scope="module")
def subject() -> Subject:
    """The backend, as it is installed."""
    return installed("inductor_x86")


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    """A process for what may end it."""
    made = Process()
    yield made
    made.end()


def check(subject: Subject, process: Process, seed: int, count: int) -> None:
    """Draw graphs, lower and run them, and list those that fail."""
    drawn = batches(subject, PRESETS, seed, count)
    found = [failure for plans in drawn for failure in failures(plans, subject, process, {})]
    assert not found, "\n\n".join(found)


@pytest.mark.long
def test_a_sample_of_random_graphs(subject: Subject, process: Process) -> None:
    """They compute what they were converted to, and their products are kernels of integers."""
    check(subject, process, seed=0, count=4)


@pytest.mark.exhaustive
def test_random_graphs(subject: Subject, process: Process) -> None:
    """The same of more."""
    check(subject, process, seed=1, count=30)
