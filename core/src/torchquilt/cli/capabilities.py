"""``torchquilt capabilities``: what backends can do."""

from __future__ import annotations

import contextlib
import difflib
import sys
from typing import TYPE_CHECKING

import click

from torchquilt._internal.terminal import is_terminal, working
from torchquilt.cli.exits import OK
from torchquilt.cli.functions import check_is_function, made_by_function
from torchquilt.cli.options import Command, json_option
from torchquilt.cli.output import write, write_error, write_table

if TYPE_CHECKING:
    from torchquilt.spec.config import Mode
    from torchquilt.support.capabilities import Capabilities


@click.command(cls=Command, short_help="Show what backends can do.")
@click.argument("backends", nargs=-1, metavar="[BACKEND]...")
@click.option("--op", help="Only this operator: linear, torch.nn.Conv2d, aten.add.Tensor …")
@click.option("--dtype", help="Only rows that use this integer type for some tensor: int8 …")
@click.option("--bits", type=click.IntRange(min=1), help="Only rows that use so many bits for some tensor.")
@click.option("--mode", type=click.Choice(["static", "dynamic", "weight_only"]), help="Only this mode.")
@click.option("--preset", help="Only rows that take the config of this preset.")
@click.option("--target", help="Only rows that run as integers on this lowering target: executorch …")
@json_option
def capabilities(
    backends: tuple[str, ...],
    op: str | None,
    dtype: str | None,
    bits: int | None,
    mode: Mode | None,
    preset: str | None,
    target: str | None,
    as_json: bool,
) -> int:
    """Show all that backends can do: of those that are named, in that order, or of all that are installed.

    A BACKEND may also be MODULE:FUNCTION, a function that makes a quantizer. One of another package, which
    has no table, is probed with examples of each operator, which takes up to a minute the first time.

    The JSON is what torchquilt.Capabilities.from_json reads, and what `torchquilt diff` compares.
    """
    found = _of_backends(backends or _usable())
    specs = [spec for row in found for _, allowed in row.specs for spec in allowed]
    _check_operator(op, found)
    _check_choice("dtype", dtype, {spec.dtype for spec in specs})
    _check_choice("preset", preset, {name for row in found for name in row.presets})
    _check_choice("target", target, {name for row in found for name in row.targets})
    found = found.filter(op, mode=mode, dtype=dtype, bits=bits, preset=preset, target=target)
    if as_json:
        write(found.to_json())
    elif found.rows and is_terminal(sys.stdout):
        write_table(found.cells(is_narrow=True))
        if found.contested:
            contests = [(contest.operator, ", then ".join(contest.backends)) for contest in found.contested]
            write_table([("operator", "backends"), *contests], "who takes a node first")
    else:
        write(str(found))
    return OK


def _usable() -> tuple[str, ...]:
    """The names of the backends that can be asked; of the others it is said why they are left out."""
    from torchquilt.plugins.registry import backends

    found = backends()
    for backend in found:
        if backend.status not in ("ok", "disabled"):
            write_error(f"warning: {backend.name} is left out, which is {backend.status}: {backend.remark}")
    return tuple(backend.name for backend in found if backend.status == "ok")


def _of_backends(names: tuple[str, ...]) -> Capabilities:
    """All that they can do. Loads their classes, and torch only if one of them needs it for that."""
    from torchquilt.plugins.registry import quantizer, quantizer_class
    from torchquilt.support.capabilities import Capabilities

    found = Capabilities()
    for name in names:
        if ":" in name:
            found |= _made_by(name)
            continue
        ask = getattr(quantizer_class(name), "backend_capabilities", None)
        # A class that does not work from a table can only tell what a quantizer would do as it is made.
        found |= quantizer(name).quantization_capabilities() if ask is None else ask()
    return found


def _made_by(name: str) -> Capabilities:
    """Capabilities of the quantizer that a function makes."""
    from torchquilt.quantizers.base import as_quantizer

    check_is_function(name, "quantizers:mine")
    quantizer = as_quantizer(made_by_function(name, "quantizer", "'BACKEND'"))
    with working("asking"), contextlib.redirect_stdout(sys.stderr):
        return quantizer.quantization_capabilities()


def _check_operator(op: str | None, found: Capabilities) -> None:
    """Refuse an operator that no row is about, and what is no operator."""
    from torchquilt.errors import IntentError

    try:
        if op is None or found.filter(op):
            return
    except IntentError as error:
        raise click.BadParameter(f"{error.problem} {error.remedy or ''}", param_hint="'--op'") from error
    known = ", ".join(sorted({row.working for row in found})) or "none"
    raise click.BadParameter(f"No row is about {op!r}: there is {known}.", param_hint="'--op'")


def _check_choice(option: str, value: str | None, known: set[str]) -> None:
    """Refuse a word that no row has: the answer would be empty, and the reason hidden."""
    if value is not None and value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(sorted(known)) or 'none'}."
        raise click.BadParameter(f"No row is about {value!r}: {hint}", param_hint=f"'--{option}'")
