"""Contributions to targets without delegates: nothing of them is lost in silence."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from torch.export import ExportedProgram

import torchquilt as tq
from strategies import export
from torchquilt.backend import Contribution, Kernel, after_passes

PROGRAM = export(torch.nn.Linear(4, 2), torch.zeros(1, 4))
#: A value for each part of a contribution that is not nothing.
PARTS: dict[str, Any] = {
    "partitioners": lambda: [object()],
    "edge_passes": lambda: [object()],
    "edge_options": {"check": True},
    "options": {"memory": "greedy"},
    "libraries": ("kernels_of_mine",),
    "readers": {"Mine": lambda payload: [Kernel("mine", (), (), "integer")]},
    "withholds": lambda overload, node: "never",
}


def test_there_is_a_value_for_each_part() -> None:
    """A new part of a contribution is refused, too, until a target takes it."""
    assert PARTS.keys() | {"passes"} == {field.name for field in attrs.fields(Contribution)}


@pytest.mark.parametrize("part", PARTS)
def test_what_a_target_does_not_use_is_refused(part: str) -> None:
    """The error names the part, the backend and the target; no pass has run by then."""
    ran = []
    given = {"first": Contribution(passes=[ran.append]), "mine": Contribution(**{part: PARTS[part]})}
    with pytest.raises(tq.LoweringError, match="'mine' has what Some Runtime makes no use of") as caught:
        after_passes(PROGRAM, given, "Some Runtime", options=["speed"])
    assert part in str(caught.value.got)
    assert "options['speed']" in str(caught.value.expected)
    assert not ran


def test_passes_run_in_order_and_options_of_the_target_are_taken() -> None:
    """Those of the first backend first."""
    ran = []

    def named(name: str) -> Any:
        def run(program: ExportedProgram) -> ExportedProgram:
            ran.append(name)
            return program

        return run

    given = {
        "first": Contribution(passes=[named("a"), named("b")], options={"speed": 3}),
        "second": Contribution(passes=[named("c")]),
    }
    assert after_passes(PROGRAM, given, "Some Runtime", options=["speed"]) is PROGRAM
    assert ran == ["a", "b", "c"]


def test_a_pass_that_fails_is_an_error_of_its_backend() -> None:
    """With its own words; an error of ours stays what it is."""

    def fails(program: ExportedProgram) -> ExportedProgram:
        raise KeyError("scale")

    def refuses(program: ExportedProgram) -> ExportedProgram:
        raise tq.LoweringError("No such kernel.")

    with pytest.raises(tq.LoweringError, match="A pass of the backend 'mine' failed") as caught:
        after_passes(PROGRAM, {"mine": Contribution(passes=[fails])}, "Some Runtime")
    assert caught.value.got == "KeyError: 'scale'"
    with pytest.raises(tq.LoweringError, match="No such kernel"):
        after_passes(PROGRAM, {"mine": Contribution(passes=[refuses])}, "Some Runtime")
