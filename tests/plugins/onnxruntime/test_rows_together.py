"""Rows of the table together on the runtime: random graphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from torchquilt.testing.drawing import batches, failures
from torchquilt.testing.process import Process
from torchquilt.testing.subject import installed

OTHERS = ("dynamic_int8_per_channel", "weight_only_int8", "weight_only_int4")


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    """A process for what may end it, for all tests of the file."""
    made = Process()
    yield made
    made.end()


def _check(process: Process, names: Sequence[str], seed: int, count: int) -> None:
    subject = installed("onnxruntime")
    drawn = batches(subject, names, seed, count)
    found = [text for plans in drawn for text in failures(plans, subject, process, {})]
    assert not found, "\n\n".join([f"seed {seed}: {len(found)} of {count} graphs are not right", *found])


@pytest.mark.long
def test_a_sample_of_random_graphs_is_right(process: Process) -> None:
    """Products that are quantized at run time, or whose weights alone are, compute what was converted."""
    _check(process, OTHERS, 0, 8)
