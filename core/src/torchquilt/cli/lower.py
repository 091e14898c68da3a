"""``torchquilt lower``: from a quantized model to a program for a runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from torchquilt._internal.terminal import working
from torchquilt.cli.exits import OK
from torchquilt.cli.functions import check_is_function, made_by_function
from torchquilt.cli.options import Command, check_is_writable, json_option, model_argument
from torchquilt.cli.output import write_json
from torchquilt.cli.programs import show_program

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torchquilt.artifact.loading import Artifact
    from torchquilt.backend import Contribution

_BACKEND = "'--backend'"


@attrs.frozen
class Request:
    """Request of a command line, checked as far as possible without loading anything."""

    model: Path
    target: str | None
    output: Path
    backends: tuple[str, ...]
    data: Path | None
    io_dtype: str | None
    verify: bool | None
    strict: bool
    least_sqnr: float | None
    as_json: bool

    def __attrs_post_init__(self) -> None:
        for option, value in (("data", self.data), ("least-sqnr", self.least_sqnr)):
            if value is not None and self.verify is False:
                raise click.UsageError(f"--{option} is about comparing, which --no-verify leaves out.")
        from torchquilt.lowering.report import report_path

        read = [path for path in (self.model, self.data) if path]
        for path in (self.output, report_path(self.output)):
            check_is_writable("output", path, read)
        for given in self.backends:
            name, is_given, function = given.partition("=")
            if is_given:
                if not name:
                    raise click.BadParameter(
                        f"{given!r} names no backend: write NAME=MODULE:FUNCTION.", param_hint=_BACKEND
                    )
                check_is_function(function, "torchquilt_onnxruntime:com_microsoft")


@click.command(cls=Command, short_help="Make a program for a runtime of a quantized model.")
@model_argument
@click.option(
    "--target",
    metavar="NAME",
    help="The lowering target; `plugins list` has those that are installed. By default the one that each "
    "backend of the model names.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write, with a report beside it, whose name has .json behind it.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME[=MODULE:FUNCTION]",
    help="Use the contribution of this backend to the target, or the one that a function makes. May be "
    "repeated; the first to take an operator keeps it. By default those that quantized the model.",
)
@click.option(
    "--io-dtype",
    type=click.Choice(["int8", "uint8", "int16"]),
    help="Have the program take and return integers, where all inputs and outputs are quantized to them.",
)
@click.option(
    "--verify/--no-verify",
    default=None,
    help="Run the program and compare it with the quantized model, or do not. By default they are compared "
    "if the program can run here.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Fail if a delegate refuses an operator, instead of leaving it to the kernels of the runtime.",
)
@click.option(
    "--least-sqnr",
    type=float,
    metavar="DB",
    help="SQNR that each output must reach, unless it is within one quantization step.  [default: 40]",
)
@click.option(
    "--data",
    type=click.Path(exists=True, path_type=Path),
    metavar="DIR|FILE",
    help="Data as for `quantize`, whose first batch is compared. By default the example inputs in the model.",
)
@json_option
def lower(**options: Any) -> int:
    """Lower MODEL, and show where each operator runs.

    MODEL is a file of `quantize` or torchquilt.save.
    """
    request = Request(**options)
    from torchquilt.artifact.loading import load
    from torchquilt.lowering.lower_program import lower as lowered_by

    model = load(request.model)
    with working("lowering"):
        program = lowered_by(
            model,
            _example(model, request),
            target=request.target,
            backends=_contributions(request.backends),
            io_dtype=_dtype(request.io_dtype),
            verify=_verify_value(request),
            strict=request.strict,
        )
    program.save(request.output)
    if request.as_json:
        write_json({"file": str(request.output), **program.to_plain()})
    else:
        show_program(request.output, program)
    return OK


def _contributions(backends: Sequence[str]) -> Mapping[str, Contribution | None] | None:
    """Value of ``backends``, as :func:`torchquilt.lower` takes it."""
    pairs = [given.partition("=") for given in backends]
    made = {
        name: made_by_function(function, "contribution", _BACKEND) if function else None
        for name, _, function in pairs
    }
    return made or None


def _verify_value(request: Request) -> Any:
    """Value of ``verify``, as :func:`torchquilt.lower` takes it."""
    if request.least_sqnr is not None:
        return request.least_sqnr
    return "auto" if request.verify is None else request.verify


def _dtype(name: str | None) -> Any:
    import torch

    return None if name is None else getattr(torch, name)


def _example(model: Artifact, request: Request) -> object | None:
    """Example inputs for the comparison."""
    from torchquilt.data import ModelInputs, open_batches

    if request.verify is False:
        return None
    if request.data is not None:
        return next(iter(open_batches(request.data, model.program, limit=1)))
    return ModelInputs(model.program).example()
