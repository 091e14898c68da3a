"""Locations in a text, and errors that name them. This module does not import torch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TypeAlias

import attrs

from torchquilt.errors import RecipeError, SpecError, TorchquiltError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: The way to a value in a document: keys, and indices of arrays.
Steps: TypeAlias = tuple[str | int, ...]


@attrs.frozen
class SourceLocation:
    """A location in a document, whether something stands there or not.

    Args:
        file: what to call the text, or None.
        text: the whole document; empty if there is none.
        steps: the way to the location.
    """

    file: str | None = None
    text: str = ""
    steps: Steps = ()

    def at(self, *steps: str | int) -> SourceLocation:
        """A location below this one."""
        return attrs.evolve(self, steps=self.steps + steps)

    @property
    def key(self) -> str:
        """The steps as text: ``quantizer[1].global.weight``. The first element of an array is 0."""
        steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.steps)
        return "".join(steps).removeprefix(".")

    @property
    def line(self) -> int | None:
        """Its line; for what is missing, the line of what it is missing from."""
        lines = lines_of(self.text) if self.steps else {}
        above = (self.steps[:end] for end in range(len(self.steps), 0, -1))
        return next((lines[steps] for steps in above if steps in lines), None)

    def error(self, problem: str, **details: Any) -> RecipeError:
        """An error about this location."""
        return RecipeError(problem, file=self.file, line=self.line, key=self.key or None, **details)

    @contextlib.contextmanager
    def blamed(self) -> Iterator[None]:
        """Raise the errors of the rest of torchquilt as errors about this location, or the field below it."""
        try:
            yield
        except TorchquiltError as error:
            spot = self
            if isinstance(error, SpecError) and self.at(error.field).steps in lines_of(self.text):
                spot = self.at(error.field)
            raise spot.error(
                error.problem,
                quantizer=error.quantizer,
                expected=error.expected,
                got=error.got,
                remedy=error.remedy,
            ) from error


def lines_of(text: str) -> dict[Steps, int]:
    """The line, from 1, of every key, table and element of a document.

    The parsers keep no lines, so they are asked statement by statement: a statement ends with the first line
    up to which it can be parsed. One that goes over several lines is an array or a text. The array is also
    parsed as if each line were its last, to see on which line an element comes into it.

    Args:
        text: valid TOML.
    """
    lines: dict[Steps, int] = {}
    newest: dict[Steps, int] = {}  # the index of the last table of each [[array]]
    table: Steps = ()
    statement, first = "", 1
    for number, line in enumerate(text.split("\n"), 1):
        statement += line + "\n"
        is_whole, data = _parsed(statement)
        if data is None:
            continue  # in the middle of an element
        if statement.lstrip().startswith("["):
            table = _enter(data, statement.lstrip().startswith("[["), first, lines, newest)
        else:
            for steps in _locations(data):
                lines.setdefault((*table, *steps), first)
        statement, first = "" if is_whole else statement, number + 1
    return lines


def _parsed(statement: str) -> tuple[bool, dict[str, Any] | None]:
    """Whether the statement is whole, and what it says so far, if that can be told."""
    for rest in ("", "]"):
        with contextlib.suppress(tomllib.TOMLDecodeError):
            return not rest, tomllib.loads(statement + rest)
    return False, None


def _enter(data: Any, is_array: bool, line: int, lines: dict[Steps, int], newest: dict[Steps, int]) -> Steps:
    """Note a header, given as what it says by itself, and return the way to its table."""
    steps: Steps = ()
    while data:
        ((key, data),) = data.items()
        steps = (*steps, key)
        lines.setdefault(steps, line)
        if is_array and isinstance(data, list):
            newest[steps] = newest.get(steps, -1) + 1
            data = None
        if steps in newest:
            steps = (*steps, newest[steps])
            lines.setdefault(steps, line)
    return steps


def _locations(value: object) -> Iterator[Steps]:
    if isinstance(value, (dict, list)):
        for step, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield (step,)
            yield from ((step, *steps) for steps in _locations(child))
