"""``torchquilt sensitivity``: the cost of quantizing each module."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from torchquilt.cli.exits import OK
from torchquilt.cli.float_models import FloatModel, float_argument
from torchquilt.cli.functions import evaluate_function, evaluate_option, minimize_option
from torchquilt.cli.options import (
    Command,
    check_is_writable,
    data_option,
    json_option,
    limit_option,
    observer_option,
    recipe_option,
    state_option,
    telling_state,
    telling_where,
)
from torchquilt.cli.output import write, write_printed


@click.command(cls=Command, short_help="Say what quantizing each module costs.")
@float_argument
@recipe_option
@data_option
@evaluate_option(required=False)
@minimize_option
@state_option
@limit_option
@observer_option
@json_option
def sensitivity(
    model: FloatModel,
    recipe: Path,
    data: Path,
    evaluate: str | None,
    minimize: bool,
    state: Path | None,
    limit: int | None,
    observer: str,
    as_json: bool,
) -> int:
    """Say what quantizing each module of FLOAT as a recipe says costs, the most costly first.

    FLOAT is a float model as `quantize` takes it. Without --evaluate the noise that each module adds to the
    outputs is estimated; with it the metric is measured as well, with each module quantized alone and with
    each left in float. A run with --state that was cut short goes on when the same command is given again.

    The JSON is what torchquilt.Sensitivity.from_json reads.
    """
    if evaluate is None and (minimize or state is not None):
        option = "minimize" if minimize else "state"
        raise click.UsageError(f"--{option} is about --evaluate, which is not given.")
    if state is not None:
        check_is_writable("state", state, [recipe, data, *model.read])
    from torchquilt.recipe import Recipe

    asked = Recipe.load(recipe)  # before torch is loaded: most mistakes show here
    with contextlib.nullcontext() if evaluate is None else evaluate_function(evaluate) as function:
        from torchquilt.accuracy.sensitivity import sensitivity as sensitivity_of
        from torchquilt.data import open_batches

        quantizer, program = asked.quantizer(), model.load(data)
        batches = open_batches(data, program, limit=limit)
        with telling_where(batches), telling_state(state):
            found = sensitivity_of(
                program,
                quantizer,
                batches,
                function,
                minimize=minimize,
                activation_observer=observer,
                state=state,
            )
    if as_json:
        write(found.to_json())
    else:
        write_printed(found.printed())
    return OK
