"""Another process that calls functions: a runtime may end the process that it is in, or never return."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import attrs

#: Eight graphs take ten seconds; a busy machine takes many times that.
_SECONDS = 600.0


@attrs.define(eq=False)
class Process:
    """A process of its own, started when it is first needed and again when it has ended.

    Args:
        seconds: how long a call may take.
    """

    seconds: float = _SECONDS
    _pool: ProcessPoolExecutor | None = attrs.field(default=None, init=False)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function there. It, its arguments and what it returns can be pickled.

        Raises:
            AssertionError: the process ended, or did not return in time.
            Exception: what the function raises.
        """
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            return self._pool.submit(function, *arguments).result(self.seconds)
        except BrokenProcessPool as error:
            self._pool = None
            raise AssertionError("the process ended") from error
        except TimeoutError as error:
            self.end()
            raise AssertionError(f"it did not return within {self.seconds:g} seconds") from error

    def end(self) -> None:
        """End the process, whatever it is doing."""
        if self._pool is not None:
            workers = list((self._pool._processes or {}).values())
            self._pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.kill()
            self._pool = None
