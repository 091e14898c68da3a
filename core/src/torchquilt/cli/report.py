"""``torchquilt report``: a page about a saved model, to be looked at in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from torchquilt.cli.exits import OK
from torchquilt.cli.options import JSON_SCHEMA, Command, check_is_writable, json_option, model_argument
from torchquilt.cli.output import write, write_error, write_json

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    from torchquilt.accuracy.report import Report
    from torchquilt.artifact.loading import Artifact


@attrs.frozen
class Request:
    """Request of a command line, checked as far as possible without loading anything."""

    model: Path
    float_model: Path | None
    data: Path | None
    limit: int | None
    program: Path | None
    output: Path
    as_json: bool

    def __attrs_post_init__(self) -> None:
        if self.data is not None and self.float_model is None:
            raise click.UsageError("--data is run through the float model: give --float, too.")
        if self.limit is not None and self.data is None:
            raise click.UsageError("--limit is about --data, which is not given.")
        paths = (self.model, self.float_model, self.data, self.program)
        read = [path for path in paths if path is not None]
        check_is_writable("output", self.output, read)


@click.command(cls=Command, short_help="Write a page about a quantized model.")
@model_argument
@click.option(
    "--float",
    "float_model",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The float model that was quantized, as torch.export.save wrote it: its sizes are on the page.",
)
@click.option(
    "--data",
    type=click.Path(exists=True, path_type=Path),
    metavar="DIR|FILE",
    help="Data as for `quantize`. Both models are run on it: the page has the errors of each operator, and "
    "histograms of what the float model computes, beside the ranges.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use at most N batches.")
@click.option(
    "--program",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="What `lower` made of MODEL, with its report beside it: where each operator runs is on the page.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The page to write; by custom it ends in .html. It is replaced whole or not at all.",
)
@json_option
def report(**options: Any) -> int:
    """Write a page about MODEL: figures, graph, operators, modules, capabilities, versions.

    MODEL is what `quantize` or torchquilt.save wrote. The page is one file that loads nothing from anywhere;
    open it in a browser. It needs the extra report: pip install 'torchquilt[report]'.
    """
    request = Request(**options)
    from torchquilt.accuracy.report.rendering import check_is_installed

    check_is_installed()  # before anything is loaded
    from torchquilt.artifact import load, load_program

    artifact = load(request.model)
    program = None if request.float_model is None else load_program(request.float_model)
    page = _report(artifact, program, request)
    page.save(request.output)
    _tell(page, request)
    return OK


def _report(artifact: Artifact, program: ExportedProgram | None, request: Request) -> Report:
    from torchquilt.accuracy.comparison import compare
    from torchquilt.accuracy.report import report as report_of
    from torchquilt.data import open_batches
    from torchquilt.lowering.program import read_report

    lowered = None if request.program is None else read_report(request.program)
    if program is None or request.data is None:
        return report_of(program, artifact, program=lowered)
    batches = open_batches(request.data, program, limit=request.limit)
    compared = compare(program, artifact, batches)
    prepared = _calibrated(artifact, program, batches)
    return report_of(program, artifact, compare=compared, prepared=prepared, program=lowered)


def _calibrated(artifact: Artifact, program: ExportedProgram, batches: Any) -> GraphModule | None:
    """The float model, prepared as the saved one was, after it saw the data; None without a recipe."""
    from torchquilt.pt2e.calibration.calibrate import calibrate
    from torchquilt.pt2e.prepare import prepare_pt2e
    from torchquilt.recipe import Recipe

    if artifact.lock.recipe is None:
        write_error("warning: no histograms, since no recipe says how the model was quantized")
        return None
    prepared = prepare_pt2e(program, Recipe.from_toml(artifact.lock.recipe).quantizer(), strict=False)
    calibrate(prepared, batches)
    return prepared


def _tell(page: Report, request: Request) -> None:
    """Say which file was written, and how much is on the page."""
    size = request.output.stat().st_size
    if not request.as_json:
        write(f"{request.output}: {size:,} bytes; open it in a browser")
        return
    groups = page.data["groups"].values()
    write_json(
        {
            "schema": JSON_SCHEMA,
            "file": str(request.output),
            "nbytes": size,
            "operators": len(page.data["operators"]),
            "compared": sum("isolated" in one for one in page.data["operators"]),
            "histograms": sum("histogram" in group for group in groups),
        }
    )
