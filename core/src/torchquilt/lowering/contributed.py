"""Contributions of backends to a target without delegates: passes, and options that the target has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import attrs

from torchquilt.errors import LoweringError
from torchquilt.lowering.target import Contribution, Pass

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_NOTHING = Contribution()


def after_passes(
    program: ExportedProgram,
    contributions: Mapping[str, Contribution],
    target: str,
    options: Collection[str] = (),
) -> ExportedProgram:
    """Run the passes of contributions, for a target that takes nothing else of them but options.

    Args:
        program: it is not changed.
        contributions: name of a backend → its contribution.
        target: the target, in the words of its users (``ONNX Runtime``).
        options: the names of the options that it has.

    Raises:
        LoweringError: a contribution has what the target makes no use of, which would be lost without a word;
            or one of its passes fails.
    """
    for backend, given in contributions.items():
        _check_is_used(given, backend, target, options)
    for backend, given in contributions.items():
        for transform in given.passes:
            program = _after(transform, program, backend)
    return program


def _check_is_used(given: Contribution, backend: str, target: str, options: Collection[str]) -> None:
    names = {field.name for field in attrs.fields(Contribution)} - {"passes", "options"}
    unused = [name for name in sorted(names) if getattr(given, name) != getattr(_NOTHING, name)]
    unused += [f"options[{name!r}]" for name in given.options if name not in options]
    if unused:
        taken = ["passes", *(f"options[{name!r}]" for name in options)]
        raise LoweringError(
            f"The contribution of {backend!r} has what {target} makes no use of.",
            backend=backend,
            expected=f"nothing but {', '.join(taken)}",
            got=", ".join(unused),
            remedy="leave it out, or lower to the target that it is for",
        )


def _after(transform: Pass, program: ExportedProgram, backend: str) -> ExportedProgram:
    try:
        return transform(program)
    except LoweringError:
        raise
    except Exception as error:  # a pass of another plugin
        raise LoweringError(
            f"A pass of the backend {backend!r} failed.",
            backend=backend,
            got=f"{type(error).__name__}: {error}",
            remedy="see the cause above",
        ) from error
