"""``torchquilt profile``: the time of a lowered program, kernel by kernel."""

from __future__ import annotations

from pathlib import Path

import click

from torchquilt._internal.terminal import working
from torchquilt.cli.exits import OK
from torchquilt.cli.options import Command, json_option, model_argument, runs_option, top_option
from torchquilt.cli.output import write, write_printed


@click.command(cls=Command, short_help="Say how long each kernel of a program takes.")
@click.argument("program", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@model_argument
@click.option(
    "--data",
    type=click.Path(exists=True, path_type=Path),
    metavar="DIR|FILE",
    help="Data as for `quantize`, whose first batch is run. By default the example inputs in the model.",
)
@runs_option("Run it N times")
@top_option("kernels that take longest")
@json_option
def profile(program: Path, model: Path, data: Path | None, runs: int, top: int, as_json: bool) -> int:
    """Say how long each kernel of PROGRAM takes, and which operators of the model it computes.

    PROGRAM is what `lower` wrote, with its report beside it, and MODEL the quantized model that it was made
    of: inputs are made as it takes them.

    The JSON is what torchquilt.lowering.Profile.from_json reads.
    """
    from torchquilt.artifact.loading import load
    from torchquilt.data import ModelInputs, open_batches
    from torchquilt.lowering import load as load_lowered

    lowered, quantized = load_lowered(program), load(model)
    if data is None:
        inputs = ModelInputs(quantized.program).example()
    else:
        inputs = next(iter(open_batches(data, quantized.program, limit=1)))
    with working("profiling"):
        found = lowered.profile(inputs, runs=runs)
    if as_json:
        write(found.to_json())
    else:
        write_printed(found.printed(top))
    return OK
