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
# Rules are more exact than the preset of a backend, and the most exact one applies. They stand below the
# backend that they are about. Uncomment what you need, and see what it does with `torchquilt explain`.
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
    """The recipe, with the presets and examples of rules as comments behind it."""
    from torchquilt.recipe import Recipe
    from torchquilt.recipe.sections import RecipePart, RecipeRule

    parts, lines = [], []
    for backend, preset in pairs:
        presets = _presets(backend, preset)
        rules = () if preset is None else (RecipeRule("global", "", preset),)
        parts.append(RecipePart(backend, rules))
        lines += [f"# Presets of {backend}:", *(f"#   {one.name}: {one.summary}" for one in presets), "#"]
    return "\n".join([Recipe(tuple(parts)).to_toml(), *lines, _EXAMPLES])


def _presets(backend: str, preset: str | None) -> tuple[PresetInfo, ...]:
    """The presets of a backend, one of which has to be chosen if there are any."""
    from torchquilt.plugins.registry import presets_of

    found = presets_of(backend, preset)
    if found and preset is None:
        names = ", ".join(one.name for one in found)
        raise click.BadParameter(
            f"{backend} needs a preset, as {backend}:PRESET or with --preset: {names}.",
            param_hint="'--backend'",
        )
    return found
