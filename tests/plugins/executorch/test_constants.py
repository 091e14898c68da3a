"""Inputs that export makes constants of, and outputs that are no tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchquilt as tq
from plugins.executorch.models import converted, xnnpack
from strategies import normal
from torchquilt.lowering import load


class Layer(nn.Module):
    """A layer with the inputs and outputs of a transformer's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(8, 8)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None = None,
        factor: float = 2.0,
        states: tuple[torch.Tensor, torch.Tensor | None] | None = None,
        is_scaled: bool = True,
        name: str = "sum",
    ) -> dict[str, Any]:
        """The layer's result, and what a library returns beside it."""
        y = self.fc(x) * factor if is_scaled else self.fc(x)
        if states is not None:
            y = y + states[0]
        return {"y": y, "none": None, "rows": x.shape[0], "factor": factor, "flag": is_scaled, "name": name}


X = normal(2, 8)
CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "by position": ((X, None, 0.5, (X, None), True, "mean"), {}),
    "by name": ((X,), {"name": "mean", "factor": 0.5, "states": (X, None)}),
    "without": ((X,), {}),
}


@pytest.fixture(scope="module", params=CALLS)
def called(request: pytest.FixtureRequest) -> tuple[tq.LoweredProgram, str]:
    """A program that was verified, and how its model was exported."""
    args, kwargs = CALLS[request.param]
    model = converted(Layer(), xnnpack(), *args, kwargs=kwargs)
    batch = {
        **dict(zip(("x", "mask", "factor", "states", "is_scaled", "name"), args, strict=False)),
        **kwargs,
    }
    return tq.lower(model, batch, verify=True), request.param


def test_a_program_is_called_as_the_model_is(called: tuple[tq.LoweredProgram, str]) -> None:
    """With all that it was exported with; what it returns has the constants of the model in it."""
    program, name = called
    args, kwargs = CALLS[name]
    found, expected = program.run(*args, **kwargs), Layer()(*args, **kwargs)
    assert (found.pop("y") - expected.pop("y")).abs().max() < 0.1
    assert found == expected


def test_constants_may_be_left_out_and_inputs_named(called: tuple[tq.LoweredProgram, str]) -> None:
    """The program has them."""
    program, name = called
    args, kwargs = CALLS[name]
    states = {} if name == "without" else {"states": (X, None)}
    found = program.run(x=X, **states)["y"]
    assert torch.equal(found, program.run(*args, **kwargs)["y"])


def test_another_constant_is_refused_and_both_are_named(called: tuple[tq.LoweredProgram, str]) -> None:
    """A program cannot compute with it; a tensor instead of None is one, too."""
    program, name = called
    args, kwargs = CALLS[name]
    if name == "by position":
        calls = {
            ("0.5", "0.25"): ((X, None, 0.25, *args[3:]), {}),
            ("None", "tensor"): ((X, X, *args[2:]), {}),
        }
    elif name == "by name":
        calls = {
            ("'mean'", "'sum'"): (args, {**kwargs, "name": "sum"}),
            ("0.5", "1"): (args, {**kwargs, "factor": 1}),
        }
    else:
        return
    for (expected, got), (other, named) in calls.items():
        with pytest.raises(tq.ProgramInputError, match="was made a constant") as caught:
            program.run(*other, **named)
        assert expected in str(caught.value.expected)
        assert got in str(caught.value.got)


def test_what_is_no_constant_has_to_be_there(called: tuple[tq.LoweredProgram, str]) -> None:
    """And what the model does not take is refused."""
    program, _ = called
    for args, kwargs in (((), {}), ((X,), {"size": 3}), ((X,), {"x": X}), ((X,) * 9, {})):
        with pytest.raises(tq.ProgramInputError):
            program.run(*args, **kwargs)


def test_constants_are_in_the_report_and_in_the_program(tmp_path: Path) -> None:
    """Loaded with and without its report it takes the same; a text is only in the report."""
    args, _ = CALLS["by position"]
    program = tq.lower(converted(Layer(), xnnpack(), *args), args)
    program.save(tmp_path / "with.pte")
    (tmp_path / "without.pte").write_bytes(program.buffer)
    expected = program.run(*args)
    assert "in   factor: 0.5, a constant" in str(program.io)
    assert "out  output_1: None, a constant" in str(program.io)
    found = load(tmp_path / "with.pte")
    assert found.io == program.io
    assert found.run(*args)["name"] == "mean"
    alone = load(tmp_path / "without.pte")
    assert torch.equal(alone.run(*args[:-1])["y"], expected["y"])
    with pytest.raises(tq.ProgramInputError, match="was made a constant"):
        alone.run(X, None, 0.25, (X, None), True)


def test_sizes_among_outputs_are_those_of_the_call() -> None:
    """A size that is dynamic is a number that the program computes."""
    shapes = {"x": {0: torch.export.Dim("rows", max=9)}, "name": None}
    model = converted(Layer(), xnnpack(), X, kwargs={"name": "a"}, dynamic_shapes=shapes)
    program = tq.lower(model, {"x": X, "name": "a"}, verify=True)
    assert program.run(normal(7, 8), name="a")["rows"] == 7


class Repeat(nn.Module):
    """Takes a number that is no constant."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, rows: int) -> torch.Tensor:
        """The first rows of a layer's result."""
        return self.fc(x)[:rows]


def test_numbers_that_change_are_refused_by_name() -> None:
    """The runtime takes none, which would show when the program is run."""
    shapes = ({}, torch.export.Dim.DYNAMIC)
    model = converted(Repeat(), xnnpack(), normal(6, 8), 3, dynamic_shapes=shapes)
    with pytest.raises(tq.LoweringError, match="'rows' is a number that changes") as caught:
        tq.lower(model, (normal(6, 8), 3))
    assert caught.value.node == "rows"
