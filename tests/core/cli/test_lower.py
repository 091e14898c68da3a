"""``torchquilt lower``, and ``inspect`` of what it wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchquilt as tq
from commands import Files, Run
from torchquilt.lowering import Profile, load


@pytest.fixture(scope="module")
def quantized(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the files, quantized dynamically and saved."""
    path = tmp_path_factory.mktemp("lowered") / "quantized.pt2"
    done = subprocess.run(
        [sys.executable, "-m", "torchquilt", "quantize", files.model, "--recipe", files.dynamic, "-o", path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0
    return path


@pytest.fixture(scope="module")
def program(quantized: Path) -> Path:
    """The same, lowered by the command in a process of its own."""
    path = quantized.with_name("model.pte")
    command = [sys.executable, "-m", "torchquilt", "lower", quantized, "-o", path, "--verify"]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"{path}: {path.stat().st_size:,} bytes, for executorch, from xnnpack" in done.stdout
    assert "delegated_as_integers: 1 operator, 1 of them quantized" in done.stdout
    assert "against the quantized model: output_0: " in done.stdout
    return path


def test_the_program_that_is_written_runs(program: Path, quantized: Path) -> None:
    """It computes what the saved model does."""
    x, ids = torch.randn(3, 16), torch.arange(3)
    expected, found = tq.load(quantized).module()(x, ids), load(program).run(x, ids)
    assert (expected - found).abs().max() < 1e-4


def test_a_program_is_compared_unless_that_is_left_out(run: Run, quantized: Path, tmp_path: Path) -> None:
    """On the example inputs in the model; --no-verify leaves nothing of it in the report."""
    out = tmp_path / "model.pte"
    told = json.loads(run("lower", quantized, "-o", out, "--json").out)
    assert [output["output"] for output in told["verification"]["outputs"]] == ["output_0"]
    assert json.loads(run("lower", quantized, "-o", out, "--no-verify", "--json").out)["verification"] is None


def test_inspect_shows_the_report_of_a_program(run: Run, program: Path) -> None:
    """As text what ``lower`` printed, and as JSON the report itself."""
    answer = run("inspect", program)
    assert (answer.code, answer.err) == (0, "")
    assert "input   x: float32[3, 16]" in answer.out
    assert "delegated_as_integers: 1 operator" in answer.out
    told = json.loads(run("inspect", program, "--json").out)
    assert told == json.loads(program.with_name("model.pte.json").read_text())
    assert told["schema"] == 1


def test_profile_tells_the_time_of_each_kernel(
    run: Run, program: Path, quantized: Path, files: Files
) -> None:
    """On example inputs or on data, as a table or as JSON, with the operators of the model."""
    answer = run("profile", program, quantized, "--runs", 2)
    assert (answer.code, answer.err) == (0, "")
    assert "ms a run (median of 2); of the time in kernels 100% in operators of the model" in answer.out
    told = run("profile", program, quantized, "--runs", 3, "--data", files.data, "--json").out
    found = Profile.from_json(told)
    assert (found.runs, found.target) == (3, "executorch")
    assert {one.arithmetic for one in found.kernels} == {"mixed", "float"}
    assert run("profile", quantized, quantized).code == 3
    assert run("profile", program, quantized, "--runs", 0).code == 2


@pytest.mark.long
def test_targets_are_compared_side_by_side(run: Run, files: Files) -> None:
    """Named one by one, or by a preset; as a table or as JSON."""
    asked = ("compare-targets", files.model, "--data", files.data, "--runs", 1)
    answer = run(*asked, "--target", "executorch=xnnpack:dynamic_int8")
    assert (answer.code, answer.err) == (0, "")
    assert "xnnpack:dynamic_int8" in answer.out
    told = run(*asked, "--preset", "dynamic_int8_weight_int4", "--json").out
    (row,) = tq.TargetComparison.from_json(told).rows
    assert row.quantizer == "xnnpack:dynamic_int8_weight_int4"
    for wrong in ((), ("--target", "executorch"), ("--target", "a=b:c", "--target", "a=b:d")):
        assert run(*asked, *wrong).code == 2
    assert run(*asked, "--target", "executorch=xnnpack:none").code == 3


def test_compare_tells_the_values_between_the_steps_of_a_program(
    run: Run, program: Path, files: Files
) -> None:
    """A table of its own, and in the JSON."""
    asked = ("compare", files.model, program, "--data", files.data)
    told = json.loads(run(*asked, "--json").out)
    assert told["values"]
    assert told["values"][0]["node"] in run(*asked).out


def test_inspect_needs_no_torch(program: Path) -> None:
    """The report is read from its file, as the lock of a model is."""
    code = (
        "import sys; from torchquilt.cli import main; "
        "code = main(['inspect', sys.argv[1], '--json']); sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0


def test_a_program_that_is_not_that_of_its_report_is_an_error(
    run: Run, program: Path, tmp_path: Path
) -> None:
    """The digest in the report tells."""
    other = tmp_path / "model.pte"
    other.write_bytes(program.read_bytes() + b"\0")
    (tmp_path / "model.pte.json").write_bytes(program.with_name("model.pte.json").read_bytes())
    answer = run("inspect", other)
    assert answer.code == 3
    assert "about another program" in answer.err


def test_the_json_is_the_report(run: Run, quantized: Path, files: Files, tmp_path: Path) -> None:
    """With the file that was written; ``--data`` is what it was compared on."""
    out = tmp_path / "model.pte"
    answer = run("lower", quantized, "-o", out, "--verify", "--data", files.data, "--json")
    told = json.loads(answer.out)
    assert (answer.code, told.pop("file")) == (0, str(out))
    assert told == json.loads(out.with_name("model.pte.json").read_text())
    assert told["verification"]["least_sqnr"] == 40


@pytest.mark.parametrize(
    ("options", "code", "error"),
    [
        (("--no-verify", "--data", "{data}"), 2, "--data is about comparing"),
        (("--no-verify", "--least-sqnr", "30"), 2, "--least-sqnr is about comparing"),
        (("--io-dtype", "int4"), 2, "int4"),
        (("--target", "executroch"), 3, "did you mean 'executorch'"),
        (("--backend", "xnpack"), 3, "did you mean 'xnnpack'"),
        (("--io-dtype", "int8"), 3, "is not quantized to int8"),
        (("--verify", "--least-sqnr", "1000"), 3, "does not compute what the quantized model computes"),
    ],
)
def test_what_cannot_be_done_is_told_and_nothing_is_written(
    run: Run,
    quantized: Path,
    files: Files,
    tmp_path: Path,
    options: tuple[str, ...],
    code: int,
    error: str,
) -> None:
    """The exit code is that of the kind of mistake."""
    out = tmp_path / "model.pte"
    answer = run("lower", quantized, "-o", out, *(option.format(data=files.data) for option in options))
    assert answer.code == code
    assert error in " ".join(answer.err.split())
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", ["model.pte", "model.pte.json"])
def test_a_fifo_in_the_place_of_the_program_or_its_report_is_refused(
    run: Run, quantized: Path, tmp_path: Path, name: str
) -> None:
    """Before anything is loaded, and it stays."""
    os.mkfifo(tmp_path / name)
    answer = run("lower", quantized, "-o", tmp_path / "model.pte")
    assert (answer.code, "no regular file" in answer.err) == (2, True)
    assert (tmp_path / name).is_fifo()


def test_inspect_says_why_a_small_model_became_larger(run: Run, quantized: Path) -> None:
    """The rest of the file takes more than quantizing the tensors saves."""
    told = " ".join(run("inspect", quantized).out.split())
    assert "larger than the tensors were in float" in told
    assert "the lock with the ledger" in told


def test_the_model_is_not_overwritten(run: Run, quantized: Path) -> None:
    """An output that is the input is refused."""
    before = quantized.read_bytes()
    assert run("lower", quantized, "-o", quantized).code == 2
    assert quantized.read_bytes() == before


def test_a_function_may_make_the_contribution(
    run: Run, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that withholds what the installed backend would give to its delegate."""
    (tmp_path / "own_contribution.py").write_text(
        "import attrs\n"
        "from torchquilt_xnnpack.lowering import CONTRIBUTION\n"
        "def gives_nothing():\n"
        "    return attrs.evolve(CONTRIBUTION, withholds=lambda overload, node: 'not today')\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    given = "xnnpack=own_contribution:gives_nothing"
    answer = run("lower", quantized, "-o", "model.pte", "--target", "executorch", "--backend", given)
    assert answer.code == 0, answer.err
    assert "not today" in answer.out


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("=own:made", "NAME=MODULE:FUNCTION"),
        ("xnnpack=", "is not module:function"),
        ("xnnpack=own", "is not module:function"),
        ("xnnpack=no_such_module:made", "no module 'no_such_module'"),
        ("xnnpack=json:loads", "cannot be called without arguments"),
        ("xnnpack=os:getcwd", "no contribution"),
    ],
)
def test_what_makes_no_contribution_is_refused(
    run: Run, quantized: Path, tmp_path: Path, given: str, words: str
) -> None:
    """Before anything is lowered or written."""
    out = tmp_path / "model.pte"
    answer = run("lower", quantized, "-o", out, "--backend", given)
    assert answer.code != 0
    assert words in " ".join(answer.err.split())
    assert not out.exists()
