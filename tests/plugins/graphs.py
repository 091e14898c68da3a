"""Graphs of a backend's rows on its runtime, for random graphs and pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import pytest

from torchquilt.testing.drawing import batches, failures
from torchquilt.testing.graphs import Plan
from torchquilt.testing.pairs import kinds_of, pairs_of
from torchquilt.testing.process import Process
from torchquilt.testing.subject import Subject, installed

STATIC = ("static_int8", "static_int8_per_channel")
#: How many plans are one program.
BATCH = 8


@cache
def subject(backend: str) -> Subject:
    """A backend, as it is installed."""
    return installed(backend)


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    """A process for what may end it, for all tests of a file."""
    made = Process()
    yield made
    made.end()


def check_drawn(
    backend: str,
    process: Process,
    names: Sequence[str],
    seed: int,
    count: int,
    *,
    mixed: bool | None = None,
    dtype: str = "float32",
) -> None:
    """Draw graphs, and fail with the smallest ones that are not right.

    Args:
        backend: its name.
        process: where they are tried.
        names: of the presets that are asked for.
        seed: of the drawing; it is printed with what fails.
        count: how many.
        mixed: whether single steps are asked for otherwise, or left in float; None for both.
        dtype: of the inputs and layers.
    """
    of = subject(backend)
    drawn = batches(of, names, seed, count, mixed=mixed, dtype=dtype)
    found = [text for plans in drawn for text in failures(plans, of, process, {})]
    assert not found, "\n\n".join([f"seed {seed}: {len(found)} of {count} graphs are not right", *found])


def check_plans(backend: str, process: Process, plans: Sequence[Plan]) -> None:
    """Try plans as they are, many in one program, and fail with those that are not right."""
    parts = [plans[begin : begin + BATCH] for begin in range(0, len(plans), BATCH)]
    of = subject(backend)
    found = [text for part in parts for text in failures(part, of, process, {}, shrink=False)]
    assert not found, "\n\n".join([f"{len(found)} of {len(plans)} graphs are not right", *found])


@cache
def static_pairs(backend: str) -> tuple[Plan, ...]:
    """All pairs of static rows, in both orders."""
    table = subject(backend).table
    kinds = kinds_of(table, "static")
    return tuple(pairs_of(table, "static_int8_per_channel", kinds, kinds))
