"""quantize --qat-state: what was trained is converted, and what is no such state is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.fx import GraphModule

import torchquilt as tq
from commands import Files, Run, recipe_of
from torchquilt.artifact import load_program


def trained(files: Files, choice: str) -> GraphModule:
    """The model of the files after two steps."""
    program = load_program(files.model)
    model = tq.prepare_qat_pt2e(program, recipe_of("static_int8").quantizer(), fake_quantize=choice)
    assert program.example_inputs is not None
    args, kwargs = program.example_inputs
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(*args, **kwargs).square().mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("choice", ["moving_average", "learned"])
def test_it_converts_what_was_trained(choice: str, run: Run, files: Files, tmp_path: Path) -> None:
    """The file computes the bits of the trained model in evaluation mode."""
    model = trained(files, choice)
    tq.qat.save_state(tmp_path / "state.pt", model)
    out = tmp_path / "out.pt2"
    asked = ("quantize", files.model, "--recipe", files.recipe, "--qat-state", tmp_path / "state.pt")
    answer = run(*asked, "-o", out)
    assert (answer.code, answer.err) == (0, "")
    example = load_program(files.model).example_inputs
    assert example is not None
    with torch.no_grad():
        expected = model.eval()(*example[0], **example[1])
        assert torch.equal(tq.load(out).module()(*example[0], **example[1]), expected)


def test_a_state_needs_no_data(run: Run, files: Files, tmp_path: Path) -> None:
    """Data beside it would not be read, so it is refused."""
    tq.qat.save_state(tmp_path / "state.pt", trained(files, "moving_average"))
    asked = ("quantize", files.model, "--recipe", files.recipe, "-o", tmp_path / "out.pt2")
    answer = run(*asked, "--qat-state", tmp_path / "state.pt", "--data", files.data)
    assert answer.code == 2
    assert "--qat-state" in answer.err
    assert not (tmp_path / "out.pt2").exists()


def test_a_state_of_the_float_model_is_told(run: Run, files: Files, tmp_path: Path) -> None:
    """The error names the file, and nothing is written."""
    torch.save(load_program(files.model).state_dict, tmp_path / "state.pt")
    asked = ("quantize", files.model, "--recipe", files.recipe, "-o", tmp_path / "out.pt2")
    answer = run(*asked, "--qat-state", tmp_path / "state.pt")
    assert answer.code != 0
    assert "state.pt holds no state of a model that was prepared for training" in answer.err
    assert not (tmp_path / "out.pt2").exists()
