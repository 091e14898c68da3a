"""``torchquilt explain``: what would be quantized, by whom, and why the rest is not."""

from __future__ import annotations

import warnings
from pathlib import Path

import click

from torchquilt._internal.terminal import working
from torchquilt.cli.exits import OK
from torchquilt.cli.float_models import FloatModel, model_argument
from torchquilt.cli.ledgers import show_ledger
from torchquilt.cli.options import Command, json_option, recipe_option, strict_option
from torchquilt.cli.output import write


@click.command(cls=Command, short_help="Say what would be quantized, and why not the rest.")
@model_argument
@recipe_option
@strict_option
@json_option
def explain(model: FloatModel, recipe: Path, strict: bool, as_json: bool) -> int:
    """Say what `quantize` would do with MODEL, and why the rest stays in float.

    MODEL is a float model as `quantize` takes it, and is not changed. The JSON is what
    torchquilt.Ledger.from_json reads, and what `torchquilt diff` compares.
    """
    from torchquilt.recipe import Recipe

    asked = Recipe.load(recipe)  # before torch is loaded: most mistakes show here
    from torchquilt.pt2e.annotate import explain as explain_model

    quantizer, program = asked.quantizer(), model.load()
    with warnings.catch_warnings():
        if not strict:
            warnings.simplefilter("ignore", UserWarning)  # the ledger says them, too
        with working("deciding"):
            ledger = explain_model(program, quantizer, strict=strict)
    if as_json:
        write(ledger.to_json())
    else:
        show_ledger(ledger)
    return OK
