"""Graphs of OpenVINO's rows on its runtime, for random graphs and pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import pytest

from torchquilt.testing.drawing import batches, failures
from torchquilt.testing.graphs import Plan
from torchquilt.testing.process import Process
from torchquilt.testing.subject import Subject, installed

STATIC = ("static_int8", "static_int8_per_channel")
#: How many plans are one program.
BATCH = 8


@cache
def subject() -> Subject:
    """OpenVINO's backend, as it is installed."""
    return installed("openvino")


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    """A process for what may end it, for all tests of a file."""
    made = Process()
    yield made
    made.end()


def check_drawn(process: Process, seed: int, count: int, *, mixed: bool | None = None) -> None:
    """Draw graphs, and fail with the smallest ones that are not right.

    Args:
        process: where they are tried.
        seed: of the drawing; it is printed with what fails.
        count: how many.
        mixed: whether single steps are asked for otherwise, or left in float; None for both.
    """
    drawn = batches(subject(), STATIC, seed, count, mixed=mixed)
    found = [text for plans in drawn for text in failures(plans, subject(), process, {})]
    assert not found, "\n\n".join([f"seed {seed}: {len(found)} of {count} graphs are not right", *found])


def check_plans(process: Process, plans: Sequence[Plan]) -> None:
    """Try plans as they are, many in one program, and fail with those that are not right."""
    parts = [plans[begin : begin + BATCH] for begin in range(0, len(plans), BATCH)]
    found = [text for part in parts for text in failures(part, subject(), process, {}, shrink=False)]
    assert not found, "\n\n".join([f"{len(found)} of {len(plans)} graphs are not right", *found])
