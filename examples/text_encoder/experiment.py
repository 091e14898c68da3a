"""The demo from beginning to end: the float model, three quantized ones, the table, the saved file."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

import torchquilt as tq
from agreement import mean_cosine, neighbours_kept, pearson_with_ratings
from encoder import Batch, LoadedEncoder, count_cut, dynamic_shapes, embed, load_encoder, tokenize
from inputs import BadInput, ModelFolder, Sentences
from lowering import lower, run_side_by_side
from report import (
    MODEL_LEGEND,
    PROGRAM_LEGEND,
    Check,
    ProgramRow,
    Row,
    check_programs,
    check_row,
    check_same_bits,
    check_target,
    print_programs,
    print_table,
    write_json,
)
from saving import SavedModelFailed, run_in_fresh_process, save
from variants import COMPOSED, VARIANTS, Seconds, composed_quantizer, coverage, quantize

PLAN = (
    "This quantizes a text encoder in four ways and measures each. It takes about 3 minutes on two free "
    "cores, and longer on a busy machine."
)
STARTED = time.monotonic()
THREADS = 2
SEED = 0
TARGETS_PRESET = "static_int8_per_channel"
"""The preset that each backend resolves for its own runtime."""


@dataclass(frozen=True)
class Task:
    """Model to quantize, sentences to do it with, and the folder for results."""

    folder: ModelFolder
    calibration: Sentences
    evaluation: Sentences
    output: Path
    """Folder for the saved models."""
    figures: Path | None = None
    """JSON file for the figures."""
    keeps_output: bool = False
    """Whether the folder stays when the demo ends."""
    targets: tuple[str, ...] = ()
    """Runtimes to run the model on side by side; ``("all",)`` means each that is installed."""


@dataclass(frozen=True)
class Experiment:
    """The exported float model, the sentences as batches, and what the float model makes of them."""

    task: Task
    encoder: LoadedEncoder
    exported: ExportedProgram
    calibration: list[Batch]
    evaluation: list[Batch]
    reference: Tensor
    """Embeddings of the evaluation sentences, shape (sentences, width)."""


@dataclass(frozen=True)
class Measured:
    """A model with its row of the table and the file that it was saved to."""

    row: Row
    model: fx.GraphModule
    saved: Path


def run(task: Task) -> bool:
    """Run the demo, print what it finds, and say whether all checks passed."""
    _make_deterministic()
    print(PLAN, flush=True)
    say("load and export the float model, and embed the sentences with it")
    experiment = set_up(task)
    setting = _setting(experiment)
    for name, value in setting.items():
        print(f"{name + ':':13}{value}")
    print("\nWhat the composed quantizer supports:")
    print(f"{composed_quantizer().quantization_capabilities()}\n", flush=True)

    say("save and measure the float model")
    measured = {"float": measure(experiment, "float", experiment.exported.module(), experiment.exported)}
    for name in VARIANTS:
        say(f"{name}: prepare, calibrate, convert, save, measure")
        measured[name] = quantize_and_measure(experiment, name)
    rows = tuple(each.row for each in measured.values())
    composed = measured[COMPOSED]
    print()
    print_table(rows)
    print(MODEL_LEGEND)
    if task.evaluation.ratings is None:
        print("No Pearson: these sentences have no human ratings, so this shows agreement with float only.")
    print(f"\n{COMPOSED}: {composed.row.coverage}")

    print()
    say("lower the float and the composed model to ExecuTorch, and run both here, in turns")
    programs = lower_and_run(experiment, composed.model)
    print()
    print_programs(programs)
    print(f"{PROGRAM_LEGEND}\n")
    on_targets = compare_on_targets(experiment) if task.targets else ()
    checks = (
        *check_row(composed.row, measured["float"].row),
        *check_programs(*programs),
        check_float_untouched(experiment),
        check_fresh_process(experiment, composed),
        *on_targets,
    )
    for check in checks:
        print(check)
    print(f"\n{next_steps(task)}")
    if task.figures is not None:
        write_json(task.figures, rows, checks, programs, about=setting)
    return all(check.passed for check in checks)


def say(step: str) -> None:
    """Say what is done now, and how long the demo has been running."""
    print(f"[{time.monotonic() - STARTED:4.0f} s] {step}", flush=True)


def next_steps(task: Task) -> str:
    """List the saved files, and say what can be done with them."""
    if not task.keeps_output:
        return "The models were saved in a temporary folder, which is removed now. --output DIR keeps them."
    saved = "\n".join(f"  {path}" for path in sorted(task.output.iterdir()))
    return (
        f"Saved:\n{saved}\n"
        f"A process without torchquilt runs the .pt2 files ({Path(__file__).with_name('run_saved.py')} shows "
        "how), and ExecuTorch the .pte files.\n"
        f"Next: torchquilt inspect {task.output / COMPOSED}.pte says where each operator runs; "
        "README.md shows the same steps for a model of your own."
    )


def _make_deterministic() -> None:
    # How a sum is split over threads decides how it rounds.
    torch.set_num_threads(THREADS)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)


def set_up(task: Task) -> Experiment:
    """Load and export the float model, and embed the evaluation sentences with it."""
    encoder = load_encoder(task.folder)
    calibration = tokenize(encoder, task.calibration.texts)
    evaluation = tokenize(encoder, task.evaluation.texts)
    exported = torch.export.export(encoder.model, calibration[0], dynamic_shapes=dynamic_shapes(encoder))
    reference = embed(exported.module(), evaluation)
    return Experiment(task, encoder, exported, calibration, evaluation, reference)


def _setting(experiment: Experiment) -> dict[str, str]:
    task, limit = experiment.task, experiment.encoder.max_tokens
    cut = count_cut(experiment.encoder, task.evaluation.texts)
    return {
        "model": str(task.folder.path),
        "calibration": task.calibration.origin,
        "evaluation": task.evaluation.origin,
        "tokens": f"at most {limit} a text; {cut} of {len(task.evaluation.texts)} evaluated are cut there",
    }


def quantize_and_measure(experiment: Experiment, name: str) -> Measured:
    """Quantize with the quantizer of that name, and measure."""
    quantized = quantize(experiment.exported, VARIANTS[name](), experiment.calibration)
    # The converted model is a module; what can be saved is a program, so it is exported once more.
    program = torch.export.export(
        quantized.model, experiment.calibration[0], dynamic_shapes=dynamic_shapes(experiment.encoder)
    )
    return measure(experiment, name, quantized.model, program, quantized.seconds)


def measure(
    experiment: Experiment,
    name: str,
    model: fx.GraphModule,
    program: ExportedProgram,
    seconds: Seconds | None = None,
) -> Measured:
    """Save ``program``, which is ``model`` exported, and compare its embeddings with the float ones."""
    saved = experiment.task.output / f"{name.replace(' ', '_')}.pt2"
    megabytes = save(program, saved)
    embeddings = embed(model, experiment.evaluation)
    ratings = experiment.task.evaluation.ratings
    row = Row(
        name,
        megabytes,
        pearson=None if ratings is None else pearson_with_ratings(embeddings, ratings),
        mean_cosine=mean_cosine(embeddings, experiment.reference),
        neighbours_kept=neighbours_kept(embeddings, experiment.reference),
        coverage=coverage(model),
        seconds=seconds,
    )
    return Measured(row, model, saved)


def lower_and_run(experiment: Experiment, model: fx.GraphModule) -> tuple[ProgramRow, ProgramRow]:
    """The float and the composed model for ExecuTorch, saved, and run on the evaluation sentences."""
    folder, shapes = experiment.task.output, dynamic_shapes(experiment.encoder)
    programs = {
        "float": lower("float", experiment.exported, folder),
        COMPOSED: lower(COMPOSED, model, folder, experiment.calibration[0], shapes),
    }
    float_one, composed = (
        ProgramRow(
            name,
            programs[name].size / 1e6,
            mean_cosine(found.embeddings, experiment.reference),
            len(programs[name].integer_operations),
            found.milliseconds,
        )
        for name, found in run_side_by_side(programs, experiment.evaluation).items()
    )
    return float_one, composed


def compare_on_targets(experiment: Experiment) -> tuple[Check, ...]:
    """Quantize for each runtime, run all of them in turns, and print the table."""
    say(f"quantize for {', '.join(experiment.task.targets)} ({TARGETS_PRESET}), and run there, in turns")
    found = tq.targets_with(TARGETS_PRESET)
    wanted = tuple(found) if experiment.task.targets == ("all",) else experiment.task.targets
    missing = [name for name in wanted if name not in found]
    if missing:
        raise BadInput(f"not installed, or without {TARGETS_PRESET}: {', '.join(missing)}")
    table = tq.compare_targets(
        experiment.exported,
        {name: found[name] for name in wanted},
        experiment.calibration,
        experiment.evaluation[0],
        progress=False,
    )
    print(f"\n{table}\n")
    return tuple(
        check_target(row.target, row.failed or row.caution, row.sqnr_to_quantized) for row in table.rows
    )


def check_float_untouched(experiment: Experiment) -> Check:
    """After all the quantizing, the float model still gives what it gave before."""
    again = embed(experiment.exported.module(), experiment.evaluation)
    return check_same_bits("float model after quantizing", [again], [experiment.reference])


def check_fresh_process(experiment: Experiment, measured: Measured) -> Check:
    """The saved file, loaded by a new process, gives what the model gives here."""
    # The last batch is mostly smaller than the others, which shows that the file takes other shapes as well.
    batches = [experiment.evaluation[0], experiment.evaluation[-1]]
    with torch.no_grad():
        here = [measured.model(*batch) for batch in batches]
    name = "saved file in a fresh process"
    try:
        there = run_in_fresh_process(measured.saved, batches)
    except SavedModelFailed as failure:
        return Check(name, "runs", str(failure), passed=False)
    return check_same_bits(name, there, here)
