"""A child process that calls a function, within a time that other work on the machine does not use up."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from torchquilt.errors import IntentError, QuantizerError, TorchquiltError

Answer = TypeVar("Answer")

TOO_LONG = "annotating it took longer than"

#: Seconds for all examples, by a :class:`Stopwatch`, and the variable that sets another limit.
ALL, LIMIT = 58.0, "TORCHQUILT_PROBING_SECONDS"


def limit() -> float:
    """Seconds that probing may take.

    Raises:
        IntentError: the variable holds no number of seconds.
    """
    text = os.environ.get(LIMIT, "")
    with contextlib.suppress(ValueError):
        if not text or 0 < float(text) < math.inf:
            return float(text or ALL)
    raise IntentError(
        f"{LIMIT} does not say how long probing may take.", expected="a number of seconds", got=repr(text)
    )


class Stopwatch:
    """Seconds since it was made, less those in which work was ready and no processor was free for it.

    The kernel of Linux tells these. Where it does not, they count, and ``is_exact`` is false.
    """

    def __init__(self) -> None:
        self.is_exact = _waited("thread-self") is not None
        self._begin = time.monotonic()
        self._waited_before = _waited("thread-self") or 0.0
        self._of_children = 0.0

    @property
    def seconds(self) -> float:
        """The seconds until now."""
        own = (_waited("thread-self") or 0.0) - self._waited_before
        return time.monotonic() - self._begin - own - self._of_children

    def leave_out(self, seconds: float) -> None:
        """Leave out what a child waited for a processor."""
        self._of_children += seconds


def _waited(process: int | str) -> float | None:
    """Seconds for which a process was ready to run and no processor was free; None where nothing tells."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{process}/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    return None


def in_child(function: Callable[[], Answer], seconds: float, stopwatch: Stopwatch) -> Answer | str:
    """Call a function in a child process: its result, or a text that says why there is none.

    The child is a copy of this process, so that a quantizer that cannot be pickled can be probed, too.

    Args:
        function: what to call.
        seconds: how long it may take, on a machine that does nothing else.
        stopwatch: leaves out what the child waits for a processor.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        return "this system cannot copy a process, and so nothing is tried on it"
    here, there = multiprocessing.get_context("fork").Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_send, args=(function, there), daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python, about threads: the child waits for none of them
        child.start()
    there.close()
    try:
        if not _answers(here, child.pid, seconds):
            return f"{TOO_LONG} {seconds:.0f} s"
        return cast("Answer | str", here.recv())
    except EOFError:
        child.join()
        return f"annotating it ended the process ({child.exitcode})"
    finally:
        stopwatch.leave_out(_waited(child.pid or 0) or 0.0)
        here.close()
        child.kill()
        child.join()


def _answers(here: Any, child: int | None, seconds: float) -> bool:
    """Whether a child sends something in time. What it waits for a processor is given to it in addition."""
    begin = time.monotonic()
    left = seconds
    while left > 0:
        if here.poll(left):
            return True
        left = seconds - (time.monotonic() - begin) + (_waited(child or 0) or 0.0)
    return False


def _send(function: Callable[[], Any], there: Any) -> None:
    """The child: call the function in silence and on one thread, since others were not copied."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        answer = function()
    except Exception as error:  # a vendor's own code
        answer = _in_words(error)
    there.send(answer)


def _in_words(error: Exception) -> str:
    """A line about an error: one of the quantizer's code, or one of ours about what it annotated."""
    cause = error.__cause__
    if isinstance(error, TorchquiltError) and not (cause and isinstance(error, QuantizerError)):
        return f"what it annotates is refused: {error.problem.rstrip('.')}"
    failure = cause or error
    line = next(iter(str(failure).splitlines()), "")
    return f"it fails with {type(failure).__name__}: {line[:200]}"
