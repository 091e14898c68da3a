"""Options of ExecuTorch that several backends ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchquilt import LoweringError
from torchquilt.backend import Contribution


def merged(field: str, contributions: Mapping[str, Contribution]) -> dict[str, Any]:
    """The options of all backends.

    Raises:
        LoweringError: two of them ask for different values.
    """
    found: dict[str, tuple[str, Any]] = {}
    for backend, given in contributions.items():
        for name, value in getattr(given, field).items():
            first, other = found.setdefault(name, (backend, value))
            if other != value:
                raise LoweringError(
                    f"Two backends ask for different values of ExecuTorch's option {name!r}.",
                    backend=f"{first} and {backend}",
                    expected=f"{other!r}, which {first} asks for",
                    got=f"{value!r}, which {backend} asks for",
                    remedy="lower what they quantize separately: backends=[...]",
                )
    return {name: value for name, (_, value) in found.items()}
