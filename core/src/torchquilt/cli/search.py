"""``torchquilt search``: a recipe with which a model is good enough, and costs the least."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from torchquilt.cli.exits import NO, OK
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
from torchquilt.cli.output import write, write_error, write_printed

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from torchquilt.accuracy.search_values import SearchResult
    from torchquilt.recipe import Recipe


@attrs.frozen
class Request:
    """Request of a command line, checked as far as possible without loading anything."""

    model: FloatModel
    recipe: Path
    data: Path
    evaluate: str
    minimize: bool
    max_drop: float | str | None
    max_bytes: int | None
    max_macs_float: int | None
    max_latency_ms: float | None
    target: str | None
    recovery: tuple[str, ...]
    max_evaluations: int
    observer: str
    limit: int | None
    state: Path | None
    output: Path | None
    save: Path | None
    as_json: bool

    def __attrs_post_init__(self) -> None:
        if (self.max_latency_ms is None) != (self.target is None):
            raise click.UsageError("--max-latency-ms and --target go together; only one of them is given.")
        read = [self.recipe, self.data, *self.model.read]
        if self.state is not None:
            check_is_writable("state", self.state, read)
            read.append(self.state)
        if self.output is not None:
            check_is_writable("output", self.output, read)
            read.append(self.output)
        if self.save is not None:
            check_is_writable("save", self.save, read)


def _drop(_: click.Context, __: click.Parameter, value: str | None) -> float | str | None:
    """A drop as :func:`torchquilt.search` takes it."""
    if value is None:
        return None
    from torchquilt.accuracy.metric import allowed_drop
    from torchquilt.errors import AccuracyError

    try:
        drop: float | str = value if "%" in value else float(value)
        allowed_drop(drop, 1.0)
    except (ValueError, AccuracyError) as error:
        raise click.BadParameter(
            f"{value!r} is neither a number from 0 in the unit of the metric, nor a share such as 1%."
        ) from error
    return drop


@click.command(cls=Command, short_help="Search for a recipe that is good enough, and costs the least.")
@float_argument
@recipe_option
@data_option
@evaluate_option(required=True)
@minimize_option
@click.option(
    "--max-drop",
    metavar="DROP",
    callback=_drop,
    help="The metric is at most so much worse than that of FLOAT: 0.01 in its unit, or 1% of it.",
)
@click.option("--max-bytes", type=click.IntRange(min=0), metavar="N", help="Parameters take at most N bytes.")
@click.option(
    "--max-macs-float",
    type=click.IntRange(min=0),
    metavar="N",
    help="At most N multiply-adds are in float, for the shapes of the export.",
)
@click.option(
    "--max-latency-ms",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="A batch takes at most X milliseconds on --target, as measured here.",
)
@click.option("--target", metavar="NAME", help="Lowering target of --max-latency-ms.")
@click.option(
    "--recovery",
    multiple=True,
    metavar="NAME",
    help="Try this recovery pass (torchquilt.recovery), and keep it if the metric gets better. May be "
    "repeated; they are tried in this order.",
)
@click.option(
    "--max-evaluations",
    type=click.IntRange(min=1),
    metavar="N",
    default=100,
    show_default=True,
    help="Judge at most N variants.",
)
@state_option
@limit_option
@observer_option
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="RECIPE",
    help="Write the recipe of the best variant to this file, as TOML, for `quantize`. It is replaced whole "
    "or not at all.",
)
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the best variant itself, calibrated on the data, with its recovery passes. It is what "
    "`quantize` would write, and is not written after Ctrl-C.",
)
@json_option
def search(**options: Any) -> int:
    """Search for a recipe with which FLOAT is within the limits, and costs the least.

    FLOAT is a float model as `quantize` takes it. The search begins with what the recipe says, and tries
    what the backends in it can do with each module. With --max-drop it looks for the fewest multiply-adds in
    float; without, for the best metric within the other limits. Exits with 1 when no variant is within all
    limits; the best one is told and written nevertheless.

    Ctrl-C ends it with the best variant so far. With --state it goes on when the same command is given again.
    """
    request = Request(**options)
    from torchquilt.recipe import Recipe

    asked = Recipe.load(request.recipe)  # before torch is loaded: most mistakes show here
    with evaluate_function(request.evaluate) as function, telling_state(request.state):
        program = request.model.load(request.data)
        result = _searched(request, asked, program, function)
        _report(request, result)
        if result.is_interrupted:
            raise KeyboardInterrupt
        if request.save is not None:
            _save(request.save, request, program, result)
    return OK if result.is_met else NO


def _searched(
    request: Request, recipe: Recipe, program: ExportedProgram, function: Callable[[Any], float]
) -> SearchResult:
    from torchquilt.accuracy.search import search as search_for
    from torchquilt.data import open_batches

    quantizer = recipe.quantizer()
    batches = open_batches(request.data, program, limit=request.limit)
    with telling_where(batches):
        return search_for(
            program,
            quantizer,
            batches,
            function,
            minimize=request.minimize,
            max_drop=request.max_drop,
            max_bytes=request.max_bytes,
            max_macs_float=request.max_macs_float,
            max_latency_ms=request.max_latency_ms,
            target=request.target,
            recovery=request.recovery,
            activation_observer=request.observer,
            max_evaluations=request.max_evaluations,
            state=request.state,
        )


def _report(request: Request, result: SearchResult) -> None:
    """Print the result, and write the recipe."""
    if request.as_json:
        write(result.to_json())
    else:
        write_printed(result.printed())
    if request.output is not None:
        result.recipe.save(request.output)
        if result.best.recovery and request.save is None:
            passes = ", ".join(result.best.recovery)
            write_error(f"warning: a recipe says no recovery passes; --save makes the model with {passes}")


def _save(path: Path, request: Request, program: ExportedProgram, result: SearchResult) -> None:
    """Write the best variant."""
    from torchquilt.artifact import save
    from torchquilt.data import ModelInputs, open_batches

    batches = open_batches(request.data, program, limit=request.limit)
    quantized = result.convert(program, batches)
    example = ModelInputs(program).example()
    save(quantized, path, next(iter(batches)) if example is None else example)
