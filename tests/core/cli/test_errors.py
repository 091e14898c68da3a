"""Help, exit codes, and errors."""

from __future__ import annotations

import errno
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import torchquilt as tq
from commands import Files, Run
from torchquilt.cli import exits
from torchquilt.cli.application import application
from torchquilt.recipe import Recipe

PAGE = Path(__file__).parents[3] / "docs/command-line.md"


def command_lines(command: click.Command, *names: str) -> Iterator[tuple[str, ...]]:
    """The words that lead to a command and to all below it."""
    yield names
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from command_lines(inner, *names, name)


@pytest.mark.parametrize("words", [*command_lines(application)], ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_level_has_help(run: Run, words: tuple[str, ...], option: str) -> None:
    """It says how the command is used, and each option says what it does."""
    answer = run(*words, option)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(" ".join(("Usage: torchquilt", *words)))
    command = application
    for word in words:
        command = command.commands[word]  # type: ignore[attr-defined]
    assert all(parameter.help for parameter in command.params if isinstance(parameter, click.Option))


@pytest.mark.parametrize("words", [words for words in command_lines(application) if words], ids=" ".join)
def test_every_command_is_in_the_documentation(words: tuple[str, ...]) -> None:
    """The page has each command, and each option of it."""
    text = PAGE.read_text()
    assert f"torchquilt {' '.join(words)}" in text
    command = application
    for word in words:
        command = command.commands[word]  # type: ignore[attr-defined]
    options = {name for parameter in command.params for name in parameter.opts if name.startswith("--")}
    assert [name for name in options if f"`{name}" not in text] == []


def test_exit_codes_are_documented() -> None:
    """The help and the page have one line for each, and no others."""
    values = {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}
    in_help = {int(number) for number in re.findall(r"^  (\d+) ", exits.EPILOG, re.MULTILINE)}
    in_page = {int(number) for number in re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE)}
    assert in_help == in_page == values


def test_the_version_is_that_of_the_package(run: Run) -> None:
    """--version prints name and version."""
    assert run("--version").out == f"torchquilt {tq.__version__}\n"


@pytest.mark.parametrize("words", [("explian",), ("explain",), ("explain", "--recpe"), ("plugins", "lst")])
def test_a_command_line_that_is_wrong_is_answered_with_the_usage(run: Run, words: tuple[str, ...]) -> None:
    """On standard error, with exit code 2."""
    answer = run(*words)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("Usage: torchquilt")
    assert "Error: " in answer.err


def asked(files: Files) -> tuple[object, ...]:
    """A command that would go well."""
    return ("explain", files.model, "--recipe", files.recipe)


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the command come upon an error."""

    def load(path: object) -> Recipe:
        raise error

    monkeypatch.setattr(Recipe, "load", load)


def test_an_error_of_ours_is_a_paragraph(run: Run, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Problem, node, quantizer, expected, got and remedy, a line each, and no traceback."""
    fields = {"node": "linear", "quantizer": "mine", "expected": "a", "got": "b", "remedy": "do this"}
    fail_with(monkeypatch, tq.ModelError("Something is wrong.", **fields))
    answer = run(*asked(files))
    assert (answer.code, answer.out) == (3, "")
    assert answer.err.splitlines() == [
        "error: Something is wrong.",
        "  node: linear",
        "  quantizer: mine",
        "  expected: a",
        "  got: b",
        "  to fix it: do this",
    ]


def test_an_error_of_a_file_is_a_line(run: Run, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file, and what the system says of it."""
    fail_with(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "out.pt2"))
    answer = run(*asked(files))
    assert (answer.code, answer.err) == (3, "error: out.pt2: No space left on device\n")


def test_what_nobody_foresaw_is_told_apart(run: Run, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a code of its own, its first line, and the way to the traceback."""
    fail_with(monkeypatch, ZeroDivisionError("division by zero\nand more"))
    answer = run(*asked(files))
    assert answer.code == 70
    assert answer.err.splitlines()[0] == "error: ZeroDivisionError: division by zero"
    assert "--debug" in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize("is_before", [True, False], ids=["before the command", "behind it"])
def test_debug_shows_the_traceback(
    run: Run, files: Files, monkeypatch: pytest.MonkeyPatch, is_before: bool
) -> None:
    """Wherever it stands, the traceback comes with its causes, and the paragraph behind it."""
    error = tq.ModelError("Something is wrong.")
    error.__cause__ = KeyError("the cause")
    fail_with(monkeypatch, error)
    words = ("--debug", *asked(files)) if is_before else (*asked(files), "--debug")
    answer = run(*words)
    assert answer.code == 3
    assert "Traceback (most recent call last)" in answer.err
    assert "KeyError: 'the cause'" in answer.err
    assert answer.err.endswith("error: Something is wrong.\n")


def test_a_message_of_hundreds_of_lines_is_cut(
    run: Run, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch prints whole graphs; the paragraph stays one, and says how much is left out."""
    fail_with(monkeypatch, tq.ModelError("Something is wrong.", got="\n".join(map(str, range(300)))))
    lines = run(*asked(files)).err.splitlines()
    assert len(lines) == 21
    assert lines[-1] == "  … 281 more lines, which --debug shows"
    assert len(run(*asked(files), "--debug").err.splitlines()) > 300


def test_ctrl_c_before_anything_is_done_is_no_traceback(
    run: Run, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading torch takes seconds, in which somebody may change their mind."""
    fail_with(monkeypatch, KeyboardInterrupt())
    answer = run(*asked(files))
    assert answer.code == 130
    assert answer.err.strip() == "interrupted"


def test_warnings_for_users_are_lines(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the code that they come from; those for programmers are not shown."""
    monkeypatch.setenv("TORCHQUILT_DISABLE_PLUGINS", "xnpack")
    answer = run("plugins", "list")
    assert answer.code == 0
    assert answer.err.startswith("warning: TORCHQUILT_DISABLE_PLUGINS names 'xnpack'")
    assert len(answer.err.splitlines()) == 1
    filters = [*warnings.filters]
    run("plugins", "list")
    assert warnings.filters == filters
