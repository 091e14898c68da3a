"""Python's collector of garbage, paused while a graph is built."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def garbage_collector_disabled() -> Iterator[None]:
    """Let no collection of cycles begin in a block in which many objects are made, and few go away.

    A node of a graph is dozens of objects, which all stay. The collector cannot know; it walks over the new
    ones again and again, and now and then over all that the process holds, which for a long graph takes as
    long as to make it. The first collection after the block goes over all of them. What is in a cycle stays
    until then; what is in none is freed at once as ever.

    A collector that the program has switched off stays off. Other threads do without it in the meantime.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
