"""Work that something is, counted in calls, which a slow machine does not change."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType


def calls_in(modules: tuple[ModuleType, ...], function: Callable[[], object]) -> int:
    """Number of calls that these modules make, of their own functions and of those of Python.

    A package stands for all that is in it.
    """
    files = [Path(str(module.__file__)) for module in modules]
    folders = tuple(str(file.parent if file.name == "__init__.py" else file) for file in files)
    count = 0

    def listen(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        count += event in ("call", "c_call") and frame.f_code.co_filename.startswith(folders)

    sys.setprofile(listen)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def growth(work: Callable[[int], int], small: int) -> float:
    """Work that each doubling adds, relative to the one before: 2 for what is linear, 4 for a square.

    Args:
        work: size → how much work it is.
        small: the first size.
    """
    first, second, third = (work(small * factor) for factor in (1, 2, 4))
    return (third - second) / (second - first)
