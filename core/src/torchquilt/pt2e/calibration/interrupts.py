"""Ctrl-C that waits for the end of a batch."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def between_batches() -> Iterator[None]:
    """Let an interrupt take effect when the block is through, so that a batch is seen as a whole.

    The second one takes effect at once. Where the program handles interrupts itself, and outside of the main
    thread, which gets none, nothing is changed.

    Raises:
        KeyboardInterrupt: at the end of the block, if there was one in it.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    interrupts = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 1:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupts:
        raise KeyboardInterrupt
