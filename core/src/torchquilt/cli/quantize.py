"""``torchquilt quantize``: from a float model, a recipe and data to a quantized model in a file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
import click

from torchquilt._internal.terminal import progress, working
from torchquilt.cli.exits import OK
from torchquilt.cli.float_models import FloatModel, model_argument
from torchquilt.cli.ledgers import share_of, show_shares
from torchquilt.cli.options import (
    JSON_SCHEMA,
    Command,
    check_is_writable,
    json_option,
    limit_option,
    observer_option,
    recipe_option,
    strict_option,
    telling_where,
)
from torchquilt.cli.output import write, write_error, write_json

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    from torchquilt.artifact.lock import Lock
    from torchquilt.quantizers.base import Quantizer


@attrs.frozen
class Request:
    """Request of a command line, checked as far as possible without loading anything."""

    model: FloatModel
    recipe: Path
    output: Path
    data: Path | None
    merge: tuple[Path, ...]
    qat_state: Path | None
    limit: int | None
    observer: str
    checkpoint: Path | None
    strict: bool
    unseen: Literal["error", "float"]
    as_json: bool

    def __attrs_post_init__(self) -> None:
        if self.data is None:
            for option in ("limit", "checkpoint"):
                if getattr(self, option) is not None:
                    raise click.UsageError(f"--{option} is about --data, which is not given.")
        elif self.merge:
            raise click.UsageError("--merge replaces --data; only one of them can be given.")
        if self.qat_state is not None and (self.data is not None or self.merge):
            raise click.UsageError("--qat-state has the ranges: neither --data nor --merge goes with it.")
        paths = (self.recipe, self.data, *self.merge, self.qat_state, *self.model.read)
        read = [path for path in paths if path is not None]
        check_is_writable("output", self.output, read)
        if self.checkpoint is not None:
            check_is_writable("checkpoint", self.checkpoint, [*read, self.output])


_DATA = """\b
Data (--data):
  FILE.npz, FILE.safetensors
          all batches in one file: each array has one more dimension in
          front than its input, [N, *shape], and element i of every array
          makes batch i
  DIR     a folder of such files, each one batch, sorted by name: arrays have
          the shape of their input
An array has the name of its input, or input_0, input_1 … by position.
"""


@click.command(cls=Command, short_help="Quantize a model and save it.", epilog=_DATA)
@model_argument
@recipe_option
@click.option(
    "--data",
    type=click.Path(exists=True, path_type=Path),
    metavar="DIR|FILE",
    help="Calibration data, see below. Not needed where nothing is quantized statically.",
)
@click.option(
    "--merge",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Instead of --data: what a run with --checkpoint FILE saw; several are merged.",
)
@click.option(
    "--qat-state",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Instead of --data: weights and ranges of a model that was trained after prepare_qat_pt2e, as "
    "torchquilt.qat.save_state or torch.save(model.state_dict()) wrote them.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write; by custom it ends in .pt2. It is replaced whole or not at all.",
)
@limit_option
@observer_option
@click.option(
    "--checkpoint",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep the state of the calibration in FILE as it goes on. Where FILE is there, go on from it.",
)
@strict_option
@click.option(
    "--unseen",
    type=click.Choice(["error", "float"]),
    default="error",
    show_default=True,
    help="Refuse operators that no batch reaches, as in a branch never taken, or leave them in float.",
)
@json_option
def quantize(**options: Any) -> int:
    """Quantize MODEL as a recipe says, and save it with its lock.

    MODEL is a float model: a file as torch.export.save wrote it, in which nothing is executed; the folder of
    a Hugging Face model; or module:function, a function of a module in the current folder or installed, that
    is called without arguments and returns (model, example_inputs), with dynamic shapes behind them or
    without, or an exported model.

    A run with --checkpoint that was cut short goes on when the same command is given again, and ends in the
    same result. Runs over parts of the data, each with a --checkpoint of its own, become one with --merge.
    """
    request = Request(**options)
    from torchquilt.recipe import Recipe

    recipe = Recipe.load(request.recipe)  # before torch is loaded: most mistakes show here
    from torchquilt.artifact import save
    from torchquilt.pt2e.convert import convert_pt2e

    quantizer, program = recipe.quantizer(), request.model.load(request.data)
    with warnings.catch_warnings():
        if not request.strict:
            warnings.simplefilter("ignore", UserWarning)  # the ledger has them, too
        with working("preparing"):
            prepared = _prepared(program, quantizer, request)
    batches = 0 if request.qat_state is not None else _calibrate(prepared, program, request)
    with working("converting and saving"):
        quantized = convert_pt2e(prepared, unseen=request.unseen)
        lock = save(quantized, request.output, _example(program, request))
    _report(request, lock, batches)
    return OK


def _prepared(program: ExportedProgram, quantizer: Quantizer, request: Request) -> GraphModule:
    """The prepared model, to be calibrated, or with the weights and ranges of training."""
    if request.qat_state is None:
        from torchquilt.pt2e.prepare import prepare_pt2e

        return prepare_pt2e(program, quantizer, activation_observer=request.observer, strict=request.strict)
    from torchquilt.pt2e.qat.prepare import prepare_qat_pt2e
    from torchquilt.pt2e.qat.state_file import is_learned, load_state, read_state

    state = read_state(request.qat_state)
    choice: Literal["learned", "moving_average"] = "learned" if is_learned(state) else "moving_average"
    trained = prepare_qat_pt2e(program, quantizer, fake_quantize=choice, strict=request.strict)
    load_state(trained, state, request.qat_state)
    return trained


def _calibrate(prepared: GraphModule, program: ExportedProgram, request: Request) -> int:
    """Calibrate the model if anything in it is observed; return the number of batches."""
    from torchquilt.pt2e.calibration.calibrate import missing_data
    from torchquilt.pt2e.calibration.merging import merge_calibration
    from torchquilt.pt2e.observer_points import observed_points

    if not observed_points(prepared):
        if request.data is not None or request.merge:
            option = "merge" if request.merge else "data"
            write_error(f"warning: --{option} is not read, since nothing is quantized statically")
        return 0
    if request.merge:
        calibration = merge_calibration(request.merge)
        calibration.add_to(prepared)
        return calibration.batches
    if request.data is None:
        raise missing_data(
            prepared,
            wanted="--data",
            got="no --data",
            remedy="pass --data (or --merge), or ask for dynamic or weight-only quantization in the recipe",
        )
    return _show(prepared, program, request, request.data)


def _show(prepared: GraphModule, program: ExportedProgram, request: Request, data: Path) -> int:
    """Run the data through the model; return the number of batches."""
    from torchquilt.data import open_batches
    from torchquilt.pt2e.calibration.calibrate import calibrate_in_steps

    batches = open_batches(data, program, limit=request.limit)
    done = 0
    try:
        with telling_where(batches), progress("calibrating", len(batches), "batches") as show:
            for done in calibrate_in_steps(prepared, batches, checkpoint=request.checkpoint):
                show(done)
    except KeyboardInterrupt:
        if request.checkpoint is not None:
            write_error(f"{request.checkpoint} holds {done} of {len(batches)} batches, to go on from")
        raise
    return done


def _example(program: ExportedProgram, request: Request) -> object | None:
    """Inputs to export the quantized model with: those of the float model, or else a batch of the data."""
    from torchquilt.data import ModelInputs, open_batches

    example = ModelInputs(program).example()
    if example is None and request.data is not None:
        return next(iter(open_batches(request.data, program, limit=1)))
    return example


def _report(request: Request, lock: Lock, batches: int) -> None:
    """Print the file, its size and the shares of what is quantized."""
    ledger = lock.ledger
    assert ledger is not None  # prepare_pt2e fills one
    size = request.output.stat().st_size
    if request.as_json:
        write_json(
            {
                "schema": JSON_SCHEMA,
                "file": str(request.output),
                "nbytes": size,
                "sha256": lock.sha256,
                "batches": batches,
                "share": share_of(ledger),
                "problems": [*ledger.problems],
                "warnings": [str(caution) for caution in ledger.warnings],
            }
        )
        return
    of_float = "" if request.model.nbytes is None else f" (float: {request.model.nbytes:,})"
    write(f"{request.output}: {size:,} bytes{of_float}, {batches} batches")
    write(f"lock: sha256 {lock.sha256}")
    show_shares(ledger)
    for problem in ledger.problems:
        write(f"problem: {problem}")
    for caution in ledger.warnings:
        write(f"warning: {caution}")
