"""Refusals: the operators that the runtime refuses, found by making the program without some of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from torchquilt import ProgramError

#: Makes a program without integers for some operators, loads and runs it.
Make = Callable[[Mapping[str, str]], object]


def refused(make: Make, sources: Sequence[str], error: ProgramError) -> dict[str, str]:
    """The operators that the runtime refuses.

    Args:
        make: raises the error of the runtime where it refuses.
        sources: the operators that compute with integers, in order.
        error: the first refusal.

    Returns:
        Operator → the runtime's words.

    Raises:
        ProgramError: it fails with all of them in float as well.
    """
    named = {source: _words(error) for source in sources if _has_word(str(error.got), source)}
    if named and _error_of(make, named) is None:
        return named
    failed = _error_of(make, dict.fromkeys(sources, "tried without it"))
    if failed is not None:
        raise failed
    found: dict[str, str] = {}
    taken, last = 0, error
    while taken < len(sources):
        least, most = taken, len(sources)
        while most - least > 1:
            middle = (least + most) // 2
            raised = _error_of(make, {**found, **dict.fromkeys(sources[middle:], "tried without it")})
            if raised is None:
                least = middle
            else:
                most, last = middle, raised
        found[sources[least]] = _words(last)
        taken = most
        after = _error_of(make, found)
        if after is None:
            break
        last = after
    return found


def _words(error: ProgramError) -> str:
    return f"ONNX Runtime refuses it: {error.got}"


def _has_word(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def _error_of(make: Make, withheld: Mapping[str, str]) -> ProgramError | None:
    try:
        make(withheld)
    except ProgramError as error:
        return error
    return None
