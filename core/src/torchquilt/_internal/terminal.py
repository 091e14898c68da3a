"""Progress on a terminal. Importing this does not import torch."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody looks at a stream on a terminal that can do more than print letters."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


def console(stream: Any) -> Any:
    """A console of rich that writes to a terminal, or to what is going to be written to one."""
    from rich.console import Console

    return Console(
        file=stream,
        force_terminal=True,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        width=shutil.get_terminal_size().columns,
        highlight=False,
    )


@contextlib.contextmanager
def progress(what: str, total: int | None, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Show progress on standard error, if that is a terminal, for as long as the block runs.

    With rich installed it is a bar, without a line of text. Within a step that shows its progress, that of a
    part of it is not shown: a terminal has room for one.

    Args:
        what: what is being done.
        total: how much there is to do; None if that is not known.
        unit: what it is counted in, such as ``batches``.

    Yields:
        A function to be called with how much of the total is done.
    """
    with _alone() as is_shown:
        if not is_shown:
            yield lambda done: None
        elif importlib.util.find_spec("rich") is not None:
            with _bar(what, total, unit) as show:
                yield show
        else:
            with _line(what, total, unit) as show:
                yield show


_is_taken = False


@contextlib.contextmanager
def _alone() -> Iterator[bool]:
    """Whether this block may show something: on a terminal, and within no other such block."""
    global _is_taken
    if _is_taken or not is_terminal(sys.stderr):
        yield False
        return
    _is_taken = True
    try:
        yield True
    finally:
        _is_taken = False


@contextlib.contextmanager
def _bar(what: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate, text = _Rate(unit), "{task.description}"
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console(sys.stderr)) as bar:
        task = bar.add_task(what, total=total, rate="")
        yield lambda done: bar.update(task, completed=done, rate=rate.after(done))


@contextlib.contextmanager
def _line(what: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    rate, written, text = _Rate(unit), 0.0, ""

    def show(done: int) -> None:
        nonlocal written, text
        of = "" if total is None else f"/{total}"
        speed = rate.after(done)
        left = "" if total is None else f", {rate.seconds_for(total - done):.0f} s left"
        text = f"\r{what} {done}{of} {speed}{left}\x1b[K"
        if time.monotonic() - written >= 0.1:
            written = time.monotonic()
            _write(text)

    try:
        yield show
    finally:
        _write(f"{text}\n" if text else "")


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


class _Rate:
    """Rate of a progress. All but the last of what was done when it is first asked for was done before."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self._start = time.monotonic()
        self._first: int | None = None
        self._speed = 0.0

    def after(self, done: int) -> str:
        """The rate in words."""
        if self._first is None:
            self._first = max(done - 1, 0)
        seconds = time.monotonic() - self._start
        self._speed = (done - self._first) / seconds if seconds > 0 else 0.0
        return f"{self._speed:.2f} {self.unit}/s" if self.unit else ""

    def seconds_for(self, number: int) -> float:
        """Time that so many more take."""
        return number / self._speed if self._speed > 0 else 0.0


@contextlib.contextmanager
def progress_if(
    wanted: bool, what: str, total: int | None, unit: str = ""
) -> Iterator[Callable[[int], None]]:
    """As :func:`progress` where that is wanted; otherwise nothing is shown."""
    if not wanted:
        yield lambda done: None
        return
    with progress(what, total, unit) as show:
        yield show


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Show on standard error, if that is a terminal, what is being done, for as long as the block runs.

    For a step of which nothing can be counted.
    """
    with _alone() as is_shown:
        if not is_shown:
            yield
        elif importlib.util.find_spec("rich") is not None:
            with console(sys.stderr).status(what):
                yield
        else:
            _write(f"\r{what} …\x1b[K")
            try:
                yield
            finally:
                _write("\r\x1b[K")


@contextlib.contextmanager
def working_if(wanted: bool, what: str) -> Iterator[None]:
    """As :func:`working` where that is wanted; otherwise nothing is shown."""
    if not wanted:
        yield
        return
    with working(what):
        yield
