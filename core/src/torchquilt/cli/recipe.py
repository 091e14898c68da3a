"""``torchquilt recipe``: a recipe to start from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from torchquilt._internal.atomic_files import replacing
from torchquilt.cli.exits import OK
from torchquilt.cli.options import Group, check_is_writable
from torchquilt.cli.output import write

if TYPE_CHECKING:
    from torchquilt.plugins.manifest import PresetInfo

# Rules that most recipes need sooner or later, to be changed and uncommented.
_EXAMPLES = """\
# Rules are more exact than the preset above, and the most exact one applies. They stand below the backend
# that they are about. Uncomment what you need; `torchquilt explain MODEL --recipe FILE` shows what it does.
#
# [[quantizer.module]]      # a module of the model, by its name in model.named_modules()
# name = "head"
# config = "float"          # leave it in float; or the name of a preset
#
# [[quantizer.type]]        # whatever comes from a module, function or operator of torch
# name = "torch.nn.Conv2d"
# config = "float"
"""


@click.group(cls=Group)
def recipe() -> None:
    """Recipes: what to quantize and how, as TOML."""


def _pairs(
    _: click.Context, __: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, str | None], ...]:
    parts = [value.partition(":") for value in values]
    return tuple((backend, preset or None) for backend, _colon, preset in parts)


@recipe.command()
@click.option(
    "--backend",
    "backends",
    multiple=True,
    required=True,
    callback=_pairs,
    metavar="NAME[:PRESET]",
    help="An installed backend. May be repeated: the first one to claim an operator keeps it.",
)
@click.option("--preset", metavar="PRESET", help="Preset of each backend that is given without one.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write to FILE and not to standard output. A file that is there already stays as it is.",
)
def new(backends: tuple[tuple[str, str | None], ...], preset: str | None, output: Path | None) -> int:
    """Write a recipe to start from, with the presets that there are and examples of rules.

    `torchquilt plugins list` shows the backends that are installed.
    """
    if output is not None:
        check_is_writable("output", output, [])
        if output.exists():
            raise click.BadParameter(f"{output} is there already.", param_hint="'--output'")
    text = _text([(backend, own or preset) for backend, own in backends])
    if output is None:
        write(text.rstrip("\n"))
        return OK
    with replacing(output) as file:
        file.write(text.encode())
    write(f"{output}: written; next: torchquilt explain MODEL --recipe {output}")
    return OK


def _text(pairs: list[tuple[str, str | None]]) -> str:
    """The recipe with its comments."""
    from torchquilt.recipe.sections import SCHEMA

    lines = [
        "# What is quantized, by which backend. The first quantizer to claim a node keeps it.",
        f"schema = {SCHEMA}",
        "",
    ]
    for backend, preset in pairs:
        lines += [*_part(backend, preset), ""]
    return "\n".join(lines) + "\n" + _EXAMPLES


def _part(backend: str, preset: str | None) -> list[str]:
    """Lines about one backend, with its other presets as comments."""
    from torchquilt.plugins.registry import presets_of

    presets = {one.name: one for one in presets_of(backend)}
    lines = ["[[quantizer]]", f'backend = "{backend}"']
    if not presets and preset is None:
        return lines
    chosen = presets.get(preset or "") or _no_preset(backend, preset, presets)
    others = [one for one in presets.values() if one is not chosen]
    lines += [f'global = "{chosen.name}"  # {chosen.summary}', *(["# Other presets:"] if others else [])]
    return [*lines, *(f"#   {one.name}: {one.summary}" for one in others)]


def _no_preset(backend: str, preset: str | None, presets: dict[str, PresetInfo]) -> PresetInfo:
    """Refuse a preset that the backend does not have."""
    from torchquilt.errors import UnsupportedConfigError, did_you_mean

    problem = (
        f"No preset is chosen for the backend {backend!r}."
        if preset is None
        else f"The backend {backend!r} has no preset {preset!r}."
    )
    raise UnsupportedConfigError(
        problem,
        quantizer=backend,
        expected=" | ".join(presets) or "no preset",
        got=preset or f"--backend {backend}",
        remedy=did_you_mean(preset or "", presets) or f"write --backend {backend}:PRESET, or give --preset",
    )
