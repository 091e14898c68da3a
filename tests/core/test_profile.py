"""Profiles of lowered programs: medians, joined with the operators of the model that a step runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

import torchquilt as tq
from torchquilt.backend import KernelTime, RunTimes
from torchquilt.errors import ProgramError
from torchquilt.lowering.profile import Profile, profiled
from torchquilt.lowering.program_facts import LoweredOperation, Ports

CONV = LoweredOperation("aten.conv2d.default", "conv", "body.first", "", "integer", step="0")
RELU = LoweredOperation("aten.relu.default", "relu", "body.act", "", "integer", step="0")
MEAN = LoweredOperation("aten.mean.dim", "mean", "head", "", "float", step="1")


class Clock:
    """A runner whose kernels take given times."""

    def __init__(self, *runs: Sequence[KernelTime]) -> None:
        self.runs = runs
        self.asked = 0

    def profile(self, inputs: Sequence[Any], runs: int) -> list[RunTimes]:
        """The times that it was made with."""
        self.asked = runs
        return [RunTimes(sum(one.seconds for one in run) + 1.0, tuple(run)) for run in self.runs]


def profile_of(*runs: Sequence[KernelTime]) -> Profile:
    """The profile of two steps: a fused convolution, and a mean."""
    return profiled("somewhere", (CONV, RELU, MEAN), Clock(*runs), [], 3)  # type: ignore[arg-type]


def test_a_kernel_gets_the_median_of_its_runs_and_the_nodes_of_its_step() -> None:
    """One slow run does not change a time; what is fused has one."""
    runs = [[KernelTime("QConv", time, "0"), KernelTime("Mean", 1.0, "1")] for time in (3.0, 90.0, 3.0)]
    found = profile_of(*runs)
    conv, mean = found.kernels
    assert (conv.kernel, conv.seconds, conv.nodes, conv.module) == ("QConv", 3.0, ("conv", "relu"), "body")
    assert (mean.seconds, mean.nodes, mean.arithmetic) == (1.0, ("mean",), "float")
    assert found.seconds == 5.0
    assert (found.attributed, found.integer_share) == (1.0, 0.75)
    assert found.by_node() == {"conv": 1.5, "relu": 1.5, "mean": 1.0}


def test_the_same_kernel_twice_in_a_step_counts_twice() -> None:
    """A delegate may run a kernel again, and a loop a step."""
    found = profile_of([KernelTime("QConv", 1.0, "0"), KernelTime("QConv", 2.0, "0")])
    assert [one.seconds for one in found.kernels] == [2.0, 1.0]


def test_time_without_a_step_is_not_attributed() -> None:
    """Operators without a step (an older report) are not those of a kernel without one."""
    nameless = LoweredOperation("aten.add.Tensor", "add", "", "", "float")
    found = profiled(
        "somewhere",
        (nameless, MEAN),
        Clock([KernelTime("Copy", 1.0), KernelTime("Mean", 3.0, "1")]),  # type: ignore[arg-type]
        [],
        1,
    )
    assert found.attributed == 0.75
    assert "75% in operators of the model" in str(found)


def test_a_profile_is_printed_and_written() -> None:
    """JSON and back is the same; the text has a line for each kernel, cut where it is asked."""
    found = profile_of([KernelTime("QConv", 0.003, "0"), KernelTime("Mean", 0.001, "1")])
    assert Profile.from_json(found.to_json()) == found
    assert "… and 1 kernel of 25.0%" in str(found.printed(1))
    assert [line.split()[0] for line in str(found).splitlines()[4:]] == ["3.000", "1.000"]


@pytest.mark.parametrize("runs", [0, -1, True, 1.5])
def test_a_number_of_runs_that_is_none_is_refused(runs: Any) -> None:
    """Nothing is run."""
    clock = Clock([])
    with pytest.raises(ProgramError, match="needs a run"):
        profiled("somewhere", (), clock, [], runs)  # type: ignore[arg-type]
    assert not clock.asked


def test_a_runner_that_tells_no_times_is_named() -> None:
    """The error says which target, and what its runner lacks."""
    program = tq.LoweredProgram("somewhere", (), b"", Ports((), ()), (), ())
    with pytest.raises(ProgramError, match="'somewhere' does not tell times") as caught:
        program.profile(())
    assert "ProfilingRunner" in str(caught.value)
    with pytest.raises(ProgramError, match="does not tell the values between its steps"):
        program.intermediate_values(())
