"""``torchquilt compare``: the error of a quantized model, operator by operator."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from torchquilt.cli.exits import NO, OK
from torchquilt.cli.float_models import FloatModel, float_argument
from torchquilt.cli.options import (
    Command,
    data_option,
    json_option,
    limit_option,
    telling_where,
    top_option,
)
from torchquilt.cli.output import write, write_error, write_printed

if TYPE_CHECKING:
    from torchquilt.accuracy.comparison_values import Comparison


def _check_is_number(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    if value is not None and math.isnan(value):  # nothing would ever be less
        raise click.BadParameter("This is not a number.")
    return value


@click.command(cls=Command, short_help="Say where a quantized model loses accuracy.")
@float_argument
@click.argument("quantized", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@data_option
@limit_option
@top_option("operators with the worst error of their own")
@click.option(
    "--fail-below",
    type=float,
    metavar="DB",
    callback=_check_is_number,
    help="Exit with 1 if an output has a signal to noise of less than DB.",
)
@json_option
def compare(
    model: FloatModel,
    quantized: Path,
    data: Path,
    limit: int | None,
    top: int,
    fail_below: float | None,
    as_json: bool,
) -> int:
    """Say how far QUANTIZED is from FLOAT: each operator by itself, and with the errors of all before it.

    FLOAT is a float model as `quantize` takes it, QUANTIZED what `quantize` or torchquilt.save made of it,
    or a program that `lower` wrote, whose outputs are compared, and the values between its steps that its
    runtime tells. Nothing in the files is executed.

    The JSON is what torchquilt.Comparison.from_json reads.
    """
    from torchquilt.accuracy.comparison import compare as compare_models
    from torchquilt.data import open_batches

    program = model.load(data)
    batches = open_batches(data, program, limit=limit)
    with telling_where(batches):
        comparison = compare_models(program, _loaded(quantized), batches)
    if as_json:
        write(comparison.to_json())
    else:
        write_printed(comparison.printed(top))
    return OK if fail_below is None else _checked(comparison, fail_below)


def _loaded(path: Path) -> Any:
    """A saved model, or a lowered program."""
    from torchquilt.artifact.loading import load
    from torchquilt.lowering import load as load_lowered
    from torchquilt.lowering.report import is_reported

    return load_lowered(path) if is_reported(path) else load(path)


def _checked(comparison: Comparison, least: float) -> int:
    """The exit code by the signal to noise of the outputs."""
    from torchquilt.errors import AccuracyError

    if not comparison.outputs:
        raise AccuracyError(
            "There is nothing to hold --fail-below against.",
            expected="an output in floating point",
            got="none",
        )
    failed = [output for output in comparison.outputs if output.error.sqnr < least]
    for output in failed:
        write_error(f"output {output.name}: {output.error.sqnr:.1f} dB, less than {least:g} dB")
    return NO if failed else OK
