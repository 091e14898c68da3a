"""The command as a process: what it loads, on a terminal and in a pipe, interrupted and killed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import torchquilt as tq
from commands import Answer, Files, Run
from terminals import Terminal, torchquilt
from torchquilt.artifact import diff, read_lock
from torchquilt.ledger.rows import Row

PIPES = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}


def in_a_pipe(*arguments: object, **environment: str) -> Answer:
    """The command with its streams in pipes."""
    done = subprocess.run(
        torchquilt(*arguments), env={**PIPES, **environment}, capture_output=True, text=True, check=False
    )
    return Answer(done.returncode, done.stdout, done.stderr)


# --- What is loaded -----------------------------------------------------------------------------------------


def modules_after(*commands: str) -> set[str]:
    """Modules of a process that has run these commands, all of which have to go well."""
    code = """
import json, sys
from torchquilt.cli import main
codes = [main(command.split()) for command in sys.argv[1:]]
sys.stderr.write(json.dumps([codes, [*sys.modules]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *commands], env=PIPES, capture_output=True, text=True, check=True
    )
    codes, modules = json.loads(done.stderr)
    assert codes == [0] * len(commands)
    return set(modules)


def test_listing_plugins_imports_next_to_nothing() -> None:
    """No torch and no rich, of a plugin the manifest alone, and of the core what a listing needs."""
    imported = modules_after("plugins list")
    assert not imported & {"torch", "numpy", "rich", "safetensors", "executorch", "torchao"}
    manifests = {entry.value for entry in entry_points(group="torchquilt")}
    packages = {manifest.partition(".")[0] for manifest in manifests}
    assert {name for name in imported if name.startswith("torchquilt_")} == manifests | packages
    parts = {name.split(".")[1] for name in imported if name.startswith("torchquilt.")}
    assert parts == {"_internal", "backend", "cli", "errors", "plugins"}
    assert len(imported) < 350, "a listing has become slow"


def test_what_needs_no_torch_does_not_load_it(files: Files, tmp_path: Path) -> None:
    """Listing, capabilities, inspecting and comparing are answered before torch would have been loaded."""
    out = tmp_path / "out.pt2"
    assert in_a_pipe("quantize", files.model, "--recipe", files.dynamic, "-o", out).code == 0
    asked = "--op torch.nn.Linear --dtype int8 --mode dynamic --target executorch --json"
    assert "torch" not in modules_after(
        "plugins list --json",
        "capabilities",
        f"capabilities xnnpack {asked}",
        f"inspect {out}",
        f"diff {out} {out}",
        "quantize --help",
    )


def test_without_the_extra_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """It has the pip line; the exit code is documented, and there is no traceback."""
    monkeypatch.setitem(sys.modules, "rich", None)
    assert run("plugins", "list") == Answer(
        4, "", "The command torchquilt needs rich: pip install 'torchquilt[cli]'\n"
    )


# --- On a terminal ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "has_lines", "has_colors"),
    [({}, True, True), ({"NO_COLOR": "1"}, True, False), ({"TERM": "dumb"}, False, False)],
    ids=["terminal", "NO_COLOR", "dumb"],
)
def test_a_terminal_gets_a_table(environment: dict[str, str], has_lines: bool, has_colors: bool) -> None:
    """With lines and bold type; without any style under NO_COLOR; plain on a terminal that can do nothing."""
    terminal = Terminal.run(*torchquilt("plugins", "list"), env=environment)
    assert terminal.finish() == 0
    assert "xnnpack" in terminal.text
    assert ("─" in terminal.text) == has_lines
    assert ("\x1b[" in terminal.text) == has_colors


def test_a_terminal_gets_all_that_a_pipe_gets(run: Run, files: Files, tmp_path: Path) -> None:
    """Every word of the answer, whatever the width: cells are folded and not cut off."""
    out = tmp_path / "out.pt2"
    assert run("quantize", files.model, "--recipe", files.recipe, "--data", files.data, "-o", out).code == 0
    for arguments in (("inspect", out), ("capabilities",)):
        terminal = Terminal.run(*torchquilt(*arguments))
        assert terminal.finish() == 0
        words = set(re.findall(r"[\w.]{4,}", in_a_pipe(*arguments).out))
        assert words - set(re.findall(r"[\w.]{4,}", terminal.words)) == set()


def test_a_pipe_gets_plain_text(files: Files) -> None:
    """No control character, whatever the terminal could do, and all columns however wide."""
    answer = in_a_pipe("capabilities", TERM="xterm-256color", FORCE_COLOR="1", COLUMNS="20")
    assert answer.code == 0
    assert answer.out.replace("\n", "").isprintable()
    assert answer.out == in_a_pipe("capabilities", NO_COLOR="1").out


def test_an_encoding_that_lacks_a_character_spells_it_out() -> None:
    """Help has an ellipsis in it, and a stream that knows only ASCII gets its number."""
    answer = in_a_pipe("capabilities", "--help", PYTHONIOENCODING="ascii")
    assert (answer.code, answer.err) == (0, "")
    assert r"\u2026" in answer.out


# --- A reader that goes away --------------------------------------------------------------------------------


def with_a_closed_pipe(*arguments: object) -> tuple[int, str]:
    """The exit code and standard error of the command when its output has no reader."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            torchquilt(*arguments), stdout=writer, stderr=subprocess.PIPE, env=PIPES, text=True, check=False
        )
    finally:
        os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", [("capabilities",), ("plugins", "list", "--json"), ("--help",)])
def test_a_pipe_that_closes_is_no_error(arguments: tuple[str, ...]) -> None:
    """Nothing is said of it, and the exit code is 0."""
    assert with_a_closed_pipe(*arguments) == (0, "")


def test_the_answer_no_survives_a_closed_pipe(tmp_path: Path) -> None:
    """Two files differ, whether somebody reads how or not."""
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    for path, quantizer in ((before, "mine"), (after, "yours")):
        row = Row("linear", "aten.linear.default", "", quantizer, "linear", "", (), (), 0, ())
        path.write_text(tq.Ledger((row,)).to_json())
    assert with_a_closed_pipe("diff", before, after) == (1, "")


def test_the_shell_sees_no_error_either(tmp_path: Path) -> None:
    """As somebody types it: `torchquilt capabilities | head -1`."""
    command = "set -o pipefail; " + " ".join(torchquilt("capabilities")) + " | head -1"
    done = subprocess.run(["bash", "-c", command], env=PIPES, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("backend")


# --- Interrupted and killed ---------------------------------------------------------------------------------


@contextmanager
def opened_by_both(pipe: Path) -> Iterator[None]:
    """Wait until somebody reads from a named pipe, and keep it open, with nothing in it."""
    while True:
        try:
            end = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError as error:
            if error.errno != errno.ENXIO:  # which it is as long as the other end is not open
                raise
            time.sleep(0.05)
    try:
        yield
    finally:
        os.close(end)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, id="ctrl-c", marks=pytest.mark.long),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, id="kill -9"),
    ],
)
def test_a_calibration_that_was_cut_short_goes_on(
    run: Run, files: Files, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Nothing but the checkpoint is left behind; the same command ends in what an uninterrupted run ends in.

    The third batch is a pipe without a writer: the process waits there for the signal.
    """
    data, folder = Path(shutil.copytree(files.folder, tmp_path / "data")), tmp_path / "folder"
    folder.mkdir()
    (data / "2.npz").unlink()
    os.mkfifo(data / "2.npz")
    asked = ("quantize", files.model, "--recipe", files.recipe, "--data", data)
    asked += ("-o", folder / "out.pt2", "--checkpoint", folder / "state")
    terminal = Terminal.run(*torchquilt(*asked))
    terminal.read_until("2/4")
    with opened_by_both(data / "2.npz"):  # before it waits there, a signal might come just before the waiting
        terminal.process.send_signal(number)
        assert terminal.finish() == code
    assert [path.name for path in folder.iterdir()] == ["state"]
    if number == signal.SIGINT:
        assert re.search(r"state holds 2 of 4 batches, to go on from\s+interrupted\s+$", terminal.words)
        assert "Traceback" not in terminal.text

    (data / "2.npz").unlink()
    shutil.copy(files.folder / "2.npz", data / "2.npz")
    assert run(*asked).code == 0
    whole = tmp_path / "whole.pt2"
    assert run("quantize", files.model, "--recipe", files.recipe, "--data", files.data, "-o", whole).code == 0
    assert not diff(read_lock(folder / "out.pt2"), read_lock(whole))
