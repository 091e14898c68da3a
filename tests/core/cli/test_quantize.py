"""quantize: what it writes is what the API writes, and what is wrong with the request is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torchquilt as tq
from commands import Files, Run, recipe_of
from strategies import export, normal
from torchquilt.artifact import diff, load_program, read_lock
from torchquilt.cli.options import OBSERVERS
from torchquilt.data import open_batches
from torchquilt.observers import make_observer


def quantized_by_api(
    files: Files, path: Path, observer: str = "histogram", limit: int | None = None, data: Path | None = None
) -> None:
    """The same as the command, in Python."""
    program = load_program(files.model)
    quantizer = recipe_of("static_int8").quantizer()
    prepared = tq.prepare_pt2e(program, quantizer, activation_observer=observer)
    tq.calibrate(prepared, open_batches(data or files.data, program), limit=limit)
    assert program.example_inputs is not None
    tq.save(tq.convert_pt2e(prepared), path, program.example_inputs[0])


@pytest.mark.parametrize("source", ["data", "folder"])
def test_the_result_is_that_of_the_api(run: Run, files: Files, tmp_path: Path, source: str) -> None:
    """The file has the same tensors, parameters and decisions, from one file of data or from a folder."""
    out = tmp_path / "out.pt2"
    asked = ("quantize", files.model, "--recipe", files.recipe, "--data", getattr(files, source))
    answer = run(*asked, "-o", out)
    assert (answer.code, answer.err) == (0, "")
    assert f"{out}: " in answer.out
    assert "4 batches" in answer.out
    quantized_by_api(files, tmp_path / "api.pt2")
    assert not diff(read_lock(out), read_lock(tmp_path / "api.pt2"))
    example = load_program(files.model).example_inputs
    assert example is not None
    assert tq.load(out).module()(*example[0]).shape == (3, 8)


def test_options_reach_the_calibration(run: Run, files: Files, tmp_path: Path) -> None:
    """--observer and --limit do what they do in Python; the JSON says how many batches there were."""
    out, data = tmp_path / "out.pt2", tmp_path / "data.npz"
    with np.load(files.data) as arrays:
        x = arrays["x"].copy()
        x[..., 0] = -10_000  # what one observer takes for masked, and the other for data
        x[1] *= 2
        np.savez(data, x=x, ids=arrays["ids"])
    asked = ("quantize", files.model, "--recipe", files.recipe, "--data", data, "-o", out)
    told = json.loads(run(*asked, "--observer", "minmax", "--limit", 2, "--json").out)
    for observer, limit, is_same in (("minmax", 2, True), ("histogram", 2, False), ("minmax", 1, False)):
        quantized_by_api(files, tmp_path / "api.pt2", observer, limit, data)
        assert bool(diff(read_lock(out), read_lock(tmp_path / "api.pt2"))) != is_same
    lock = read_lock(out)
    assert (told["batches"], told["sha256"], told["file"]) == (2, lock.sha256, str(out))
    assert told["nbytes"] == out.stat().st_size
    assert told["share"]["all"]["operators"]["quantized"] == 1


def test_data_is_not_needed_where_nothing_is_observed(run: Run, files: Files, tmp_path: Path) -> None:
    """A dynamic recipe works without; data that is given all the same is told to be of no use."""
    asked = ("quantize", files.model, "--recipe", files.dynamic, "-o", tmp_path / "out.pt2")
    answer = run(*asked)
    assert (answer.code, answer.err) == (0, "")
    assert "0 batches" in answer.out
    answer = run(*asked, "--data", files.data)
    assert answer.code == 0
    assert answer.err.startswith("warning: --data is not read")


def test_a_program_without_example_inputs_is_exported_with_a_batch(
    run: Run, files: Files, tmp_path: Path
) -> None:
    """Some programs are saved without; the data has inputs, too."""
    program = load_program(files.model)
    program._example_inputs = None
    torch.export.save(program, tmp_path / "bare.pt2")
    out = tmp_path / "out.pt2"
    asked = ("quantize", tmp_path / "bare.pt2", "--recipe", files.recipe, "-o", out)
    assert run(*asked, "--data", files.data).code == 0
    assert tq.load(out).program.example_inputs is not None


def test_problems_of_rules_can_be_let_pass(run: Run, files: Files, tmp_path: Path) -> None:
    """With --no-strict the model is quantized, and the problem is told once; the file says it, too."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'{files.dynamic.read_text()}\n[[quantizer.module]]\nname = "fd"\nconfig = "float"\n')
    asked = ("quantize", files.model, "--recipe", recipe, "-o", tmp_path / "out.pt2")
    assert run(*asked).code == 3
    assert not (tmp_path / "out.pt2").exists()
    answer = run(*asked, "--no-strict")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.count("problem: ") == 1
    ledger = read_lock(tmp_path / "out.pt2").ledger
    assert ledger is not None
    assert len(ledger.problems) == 1


class Branches(nn.Module):
    """Two branches, of which positive data reaches one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.yes, self.no = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One of two layers."""
        return torch.cond(x.sum() > 0, self.yes, self.no, (x,))


def test_a_branch_that_no_batch_takes_is_refused_or_left(run: Run, files: Files, tmp_path: Path) -> None:
    """By default it is an error; --unseen float leaves what is in the branch in float."""
    torch.export.save(export(Branches(), normal(2, 4).abs()), tmp_path / "model.pt2")
    np.savez(tmp_path / "data.npz", x=normal(3, 2, 4).abs().numpy())
    out = tmp_path / "out.pt2"
    asked: tuple[Any, ...] = ("quantize", tmp_path / "model.pt2", "--recipe", files.recipe, "-o", out)
    asked += ("--data", tmp_path / "data.npz")
    refused = run(*asked)
    assert refused.code == 3
    assert "was never run during calibration" in refused.err
    assert not out.exists()
    assert run(*asked, "--unseen", "float").code == 0
    ledger = read_lock(out).ledger
    assert ledger is not None
    assert "never_reached" in [row.code for row in ledger]


# --- Going on -----------------------------------------------------------------------------------------------


def test_more_data_goes_on_from_a_checkpoint(run: Run, files: Files, tmp_path: Path) -> None:
    """A run that ended well goes on with what was added behind its data, and ends like one run over all."""
    out, checkpoint = tmp_path / "out.pt2", tmp_path / "state"
    asked = ("quantize", files.model, "--recipe", files.recipe, "-o", out, "--checkpoint", checkpoint)
    assert run(*asked, "--data", files.folder, "--limit", 3).code == 0
    assert json.loads(run(*asked, "--data", files.folder, "--json").out)["batches"] == 4
    quantized_by_api(files, tmp_path / "api.pt2")
    assert not diff(read_lock(out), read_lock(tmp_path / "api.pt2"))


def test_the_checkpoint_of_another_recipe_is_refused(run: Run, files: Files, tmp_path: Path) -> None:
    """The error names the file, what is not the same, and what to do."""
    other = tmp_path / "other.toml"
    recipe_of("static_int8_per_channel").save(other)
    asked = ("quantize", files.model, "--data", files.data, "-o", tmp_path / "out.pt2")
    asked += ("--checkpoint", tmp_path / "state")
    assert run(*asked, "--recipe", files.recipe).code == 0
    answer = run(*asked, "--recipe", other)
    assert answer.code == 3
    assert (
        f"{tmp_path / 'state'} is the checkpoint of another calibration, with other quantizer" in answer.err
    )
    assert "remove the file to begin anew" in answer.err


# --- Several machines ---------------------------------------------------------------------------------------


@pytest.fixture
def shards(run: Run, files: Files, tmp_path: Path) -> list[Path]:
    """Checkpoints of two runs of the command, of one batch and of the three others."""
    states = []
    with np.load(files.data) as arrays:
        for number, part in enumerate([slice(1), slice(1, None)]):
            data, state = tmp_path / f"{number}.npz", tmp_path / f"{number}.state"
            np.savez(data, **{name: array[part] for name, array in arrays.items()})
            asked = ("quantize", files.model, "--recipe", files.recipe, "--data", data, "--checkpoint", state)
            assert run(*asked, "-o", tmp_path / "part.pt2").code == 0
            states.append(state)
    return states


def test_merged_runs_end_like_one_over_all_of_the_data(
    run: Run, files: Files, shards: list[Path], tmp_path: Path
) -> None:
    """In any order; the checkpoints are only read."""
    out, before = tmp_path / "out.pt2", [state.read_bytes() for state in shards]
    merged = [option for state in reversed(shards) for option in ("--merge", state)]
    answer = run("quantize", files.model, "--recipe", files.recipe, *merged, "-o", out, "--json")
    assert (answer.code, answer.err) == (0, "")
    assert json.loads(answer.out)["batches"] == 4
    quantized_by_api(files, tmp_path / "api.pt2")
    assert not diff(read_lock(out), read_lock(tmp_path / "api.pt2"))
    assert [state.read_bytes() for state in shards] == before


def test_shards_that_do_not_belong_together_are_refused(
    run: Run, files: Files, shards: list[Path], tmp_path: Path
) -> None:
    """The same one twice, or one of another recipe: what is at the path of the output stays."""
    out, other = tmp_path / "out.pt2", tmp_path / "other.toml"
    out.write_bytes(b"what was there")
    recipe_of("static_int8_per_channel").save(other)
    twice = ("--recipe", files.recipe, "--merge", shards[0], "--merge", shards[0])
    for options, problem in [
        (twice, f"{shards[0]} has seen the same data as {shards[0]}"),
        (("--recipe", other, "--merge", shards[0]), "with other quantizer"),
        (("--recipe", files.recipe, "--merge", files.recipe), "is no checkpoint of a calibration"),
    ]:
        answer = run("quantize", files.model, *options, "-o", out)
        assert answer.code == 3
        assert problem in answer.err
        assert out.read_bytes() == b"what was there"


# --- What is wrong ------------------------------------------------------------------------------------------


def test_a_batch_that_the_model_cannot_take_is_told_with_its_file(
    run: Run, files: Files, tmp_path: Path
) -> None:
    """The error names the file and the model's own words; the file at the path of the output stays."""
    folder, out = Path(shutil.copytree(files.folder, tmp_path / "data")), tmp_path / "out.pt2"
    np.savez(folder / "2.npz", x=normal(3, 16).numpy(), ids=np.array([0, 99, 0]))
    out.write_bytes(b"what was there")
    answer = run("quantize", files.model, "--recipe", files.recipe, "--data", folder, "-o", out)
    assert answer.code == 3
    assert answer.err.startswith(f"error: {folder / '2.npz'}: Batch 2 (counted from 0) does not go through")
    assert "IndexError" in answer.err
    assert "Traceback" not in answer.err
    assert out.read_bytes() == b"what was there"


def test_data_of_another_shape_is_told_before_anything_runs(run: Run, files: Files, tmp_path: Path) -> None:
    """The file, the input, what was expected, and what is there."""
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 3, 15), "float32"), ids=np.zeros((4, 3), "int64"))
    asked = ("quantize", files.model, "--recipe", files.recipe, "--data", tmp_path / "data.npz")
    answer = run(*asked, "-o", tmp_path / "out.pt2")
    assert answer.code == 3
    assert answer.err.splitlines() == [
        f"error: {tmp_path / 'data.npz'}: the array x is not what the model takes.",
        "  node: input x",
        "  expected: float32 [N, 3, 16]",
        "  got: float32 [4, 3, 15]",
    ]


def test_missing_data_is_told_with_what_needs_it(run: Run, files: Files, tmp_path: Path) -> None:
    """A static recipe without data is an error, with both ways out."""
    answer = run("quantize", files.model, "--recipe", files.recipe, "-o", tmp_path / "out.pt2")
    assert answer.code == 3
    assert "There is no data to calibrate with." in answer.err
    assert "to fix it: pass --data (or --merge), or ask for dynamic" in answer.err


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (("--limit", "2"), "--limit is about --data"),
        (("--checkpoint", "state"), "--checkpoint is about --data"),
        (("--merge", "{data}", "--data", "{data}"), "--merge replaces --data"),
        (("--merge", "{data}", "--output", "{data}"), "Another option names the same file"),
        (("--merge", "{data}", "--limit", "2"), "--limit is about --data"),
        (("--limit", "0", "--data", "{data}"), "0 is not in the range"),
        (("--data", "nowhere"), "'nowhere' does not exist"),
        (("--output", "nowhere/out.pt2"), "There is no folder 'nowhere'"),
        (("--output", "{model}"), "Another option names the same file"),
        (("--output", "{data}", "--data", "{data}"), "Another option names the same file"),
        (("--output", "x", "--checkpoint", "x", "--data", "{data}"), "'--checkpoint': Another option"),
        (("--observer", "mse"), "'histogram', 'minmax'"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(
    run: Run, files: Files, tmp_path: Path, options: tuple[str, ...], hint: str
) -> None:
    """It is a mistake on the command line, and shows before anything is loaded."""
    before = files.model.read_bytes()
    given = [option.format(data=files.data, model=files.model) for option in options]
    output = () if "--output" in given else ("--output", tmp_path / "out.pt2")
    answer = run("quantize", files.model, "--recipe", files.recipe, *output, *given)
    assert answer.code == 2
    assert hint in answer.err
    assert files.model.read_bytes() == before


def test_a_mistake_in_the_recipe_is_told_with_file_line_and_key(
    run: Run, files: Files, tmp_path: Path
) -> None:
    """In the form that editors make a link of."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('schema = 1\n[[quantizer]]\nbackend = "xnnpack"\nglobal = "static_int9"\n')
    answer = run("quantize", files.model, "--recipe", recipe, "-o", tmp_path / "out.pt2")
    assert answer.code == 3
    assert answer.err.startswith(f"error: {recipe}:4: ")
    assert "key: quantizer[0].global" in answer.err


@pytest.mark.parametrize(("content", "said"), [(b"hello", "no zip archive"), (b"", "an empty file")])
def test_a_model_that_is_none_is_told_to_be_what_it_is(
    run: Run, files: Files, tmp_path: Path, content: bytes, said: str
) -> None:
    """With the path."""
    (tmp_path / "model.pt2").write_bytes(content)
    answer = run("explain", tmp_path / "model.pt2", "--recipe", files.recipe)
    assert answer.code == 3
    assert answer.err.startswith(f"error: {tmp_path / 'model.pt2'}: ")
    assert said in answer.err


def test_a_model_that_is_quantized_already_is_refused(run: Run, files: Files, tmp_path: Path) -> None:
    """Its own output is no input."""
    out = tmp_path / "out.pt2"
    assert run("quantize", files.model, "--recipe", files.dynamic, "-o", out).code == 0
    answer = run("quantize", out, "--recipe", files.dynamic, "-o", tmp_path / "again.pt2")
    assert answer.code == 3
    assert "quantized already" in answer.err


@pytest.mark.parametrize("name", [*OBSERVERS, "percentile:99.99", "moving_average:0.1"])
def test_every_observer_that_is_offered_is_known(name: str) -> None:
    """The command takes the names that make_observer takes."""
    assert make_observer(name, tq.QuantizationSpec("int8")) is not None
