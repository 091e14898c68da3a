"""``torchquilt compare-targets``: one float model on several runtimes, side by side."""

from __future__ import annotations

from pathlib import Path

import click

from torchquilt.cli.exits import NO, OK
from torchquilt.cli.float_models import FloatModel, float_argument
from torchquilt.cli.options import (
    Command,
    data_option,
    json_option,
    limit_option,
    observer_option,
    runs_option,
    telling_where,
)
from torchquilt.cli.output import write, write_printed


def _pairs(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """``TARGET=BACKEND:PRESET`` as pairs; each target once."""
    found: dict[str, str] = {}
    for value in values:
        target, equals, quantizer = value.partition("=")
        if not equals or not target or ":" not in quantizer:
            raise click.BadParameter(
                f"{value!r} is not TARGET=BACKEND:PRESET, such as executorch=xnnpack:static_int8."
            )
        if target in found:
            raise click.BadParameter(f"{target!r} is given twice.")
        found[target] = quantizer
    return found


@click.command(
    name="compare-targets", cls=Command, short_help="Run one model on several runtimes, side by side."
)
@float_argument
@data_option
@limit_option
@click.option(
    "--target",
    "targets",
    multiple=True,
    callback=_pairs,
    metavar="TARGET=BACKEND:PRESET",
    help="A lowering target, and who quantizes the model for it. May be repeated.",
)
@click.option(
    "--preset",
    metavar="NAME",
    help="Each installed target, with an installed backend that has this preset and runs there.",
)
@observer_option
@runs_option("Run each program N times, in turns")
@json_option
def compare_targets(
    model: FloatModel,
    data: Path,
    limit: int | None,
    targets: dict[str, str],
    preset: str | None,
    observer: str,
    runs: int,
    as_json: bool,
) -> int:
    """Quantize FLOAT for several runtimes, and run it there: what is in integers, how close, size, time.

    FLOAT is a float model as `quantize` takes it. The programs are run and compared on the first batch of
    the data, which all of it calibrates. The float model runs beside each on the same runtime.

    Exits with 1 if something fails on a target; the table says what.

    The JSON is what torchquilt.TargetComparison.from_json reads.
    """
    if bool(targets) == (preset is not None):
        raise click.UsageError("Give either --target, once or more, or --preset.")
    from torchquilt.accuracy.targets import compare_targets as compare_on
    from torchquilt.data import open_batches

    program = model.load(data)
    example = next(iter(open_batches(data, program, limit=1)))
    batches = open_batches(data, program, limit=limit)
    with telling_where(batches):
        found = compare_on(
            program, targets or str(preset), batches, example, activation_observer=observer, runs=runs
        )
    if as_json:
        write(found.to_json())
    else:
        write_printed(found.printed())
    return NO if any(row.failed for row in found.rows) else OK
