"""Cost and exactness of quantization-aware training: torchquilt beside torchao.

    python benchmarks/qat.py [--models NAME ...] [--runs 5] [--steps 3] [--variants 12] [--json FILE]

Both train the same programs, exported in training mode (static int8, one weight scale a channel, XNNPACK's
quantizer), with SGD and one thread. The float program, ours and torchao's take turns, step by step, in one
process; of each run the fastest step of each counts, and of all runs the median of the ratios: so what else
the machine does falls on all three. Peak memory is measured in a process of its own for each: the resident
memory at the peak of a step, of which torch and the other packages are some 300 MiB.

Then layers with BatchNorms are trained for some steps, and what they are converted to is compared with what
they compute in evaluation mode: of ours the bits, of torchao's the signal to noise ratio. For both it is
compared with the layers in float, too, with the weights that were trained and the eps that the layers have.

What torchao cannot do is told by the first line of its error.

Exit status: 0 if every figure reaches what REACH says, 1 if not.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from measuring import about, peak_of, signal_to_noise, timed
from models import Subject, TextEncoder, mobilenet_v2, resnet18
from norm_variants import VARIANTS, Variant
from small_models import mobile_net
from systems import TrainingSystem, torchao_training, torchquilt_training

FLOAT, OURS, TORCHAO = "float", "torchquilt", "torchao"
SYSTEMS = {OURS: torchquilt_training, TORCHAO: torchao_training}
MOMENTUM = 0.1
"""Of all BatchNorms: a moving average, since torch exports no other in training mode."""
VARIANT_STEPS = 5
"""Steps that a layer is trained for before it is evaluated and converted."""
FIGURES = {
    "step": "step ÷ float",
    "beside": "step ÷ torchao's",
    "prepare": "prepare ÷ torchao's",
    "memory": "peak memory ÷ float",
}
REACH = {
    "small CNN": {},
    "ResNet-18": {"step": 1.5, "beside": 0.8, "prepare": 0.05, "memory": 1.5},
    "MobileNetV2": {"step": 1.9, "beside": 0.8, "prepare": 0.05, "memory": 1.5},
    "BERT-base, 64 tokens": {"step": 1.3, "beside": 0.8, "memory": 1.5},
}
"""Of each model the figures that have a bound, and the most that they may be."""


def _images(size: int) -> Callable[[int], tuple[torch.Tensor, ...]]:
    return lambda seed: (torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(seed)),)


def _texts(seed: int) -> tuple[torch.Tensor, ...]:
    tokens = torch.randint(30522, (8, 64), generator=torch.Generator().manual_seed(seed))
    there = torch.ones(8, 64, dtype=torch.int64)
    there[::2, 48:] = 0
    return tokens, there


SMALL = Subject("small CNN", mobile_net, _images(32))
SUBJECTS = (
    SMALL,
    Subject("ResNet-18", resnet18, _images(96)),
    Subject("MobileNetV2", mobilenet_v2, _images(96)),
    Subject("BERT-base, 64 tokens", TextEncoder, _texts),
)


@attrs.define
class Timed:
    """Figures of one system for one model.

    Args:
        prepare: seconds of each run.
        step: seconds of the fastest step of each run.
        memory: MiB at the peak of a step.
        error: the first line of what it raised; None where it went through.
    """

    prepare: list[float] = attrs.field(factory=list)
    step: list[float] = attrs.field(factory=list)
    memory: float = float("nan")
    error: str | None = None


@attrs.frozen
class Measured:
    """All that was measured of a model, by the name of the system."""

    subject: Subject
    systems: dict[str, Timed]

    def figures(self) -> dict[str, float]:
        """The figures that REACH is about; nan where torchao has none."""
        float_, ours, theirs = (self.systems[name] for name in (FLOAT, OURS, TORCHAO))
        return {
            "step": _ratio(ours.step, float_.step),
            "beside": _ratio(ours.step, theirs.step),
            "prepare": _ratio(ours.prepare, theirs.prepare),
            "memory": ours.memory / float_.memory,
        }

    def is_met(self, key: str, figure: float) -> bool:
        """Whether a figure is within its bound, if it has one and was measured."""
        bound = REACH[self.subject.name].get(key)
        return bound is None or figure != figure or figure <= bound


def _ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the ratios, run by run."""
    if len(ours) != len(theirs) or not ours:
        return float("nan")
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def exported(module: nn.Module, batch: tuple[torch.Tensor, ...]) -> ExportedProgram:
    """Export a module in training mode, with BatchNorms whose statistics are moving averages."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = MOMENTUM
    return torch.export.export(module.train().requires_grad_(True), batch)


def stepper(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> Callable[[], None]:
    """A function that takes a step of training."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        model(*batch).square().mean().backward()
        optimizer.step()

    return step


def first_line(error: Exception) -> str:
    """Class of an error, and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def prepared(program: ExportedProgram, system: TrainingSystem, into: Timed) -> GraphModule | None:
    """A model that trains, noting how long that took; None where the system fails."""
    model = program.module()  # torchao changes what it is given
    try:
        seconds, made = timed(lambda: system.prepare(model))
    except Exception as error:
        into.error = first_line(error)
        return None
    into.prepare.append(seconds)
    return made


def measure(subject: Subject, runs: int, steps: int) -> Measured:
    """A subject in float and under both systems, in turns."""
    batch = subject.batch(0)
    program = exported(subject.module(), batch)
    systems = {name: make() for name, make in SYSTEMS.items()}
    found = {name: Timed() for name in (FLOAT, *systems)}
    steppers = {FLOAT: stepper(program.module(), batch)}
    for number in range(runs + 1):
        for name, system in systems.items():
            model = prepared(program, system, found[name]) if not found[name].error else None
            if number == 0 and model is not None:
                found[name].prepare.clear()  # the first is to warm up
                steppers[name] = stepper(model, batch)
    time_steps(steppers, found, runs, steps)
    for name, into in found.items():
        if into.error is None:
            into.memory = peak_of_child(subject, name)
    return Measured(subject, found)


def time_steps(
    steppers: dict[str, Callable[[], None]], found: dict[str, Timed], runs: int, steps: int
) -> None:
    """Let the models take steps in turns. The first is to warm up, and may fail."""
    for name in list(steppers):
        found[name].error = error_of(steppers[name])
        if found[name].error is not None:
            del steppers[name]
    for _ in range(runs):
        seconds: dict[str, list[float]] = {name: [] for name in steppers}
        for _ in range(steps):
            for name, step in steppers.items():
                seconds[name].append(timed(step)[0])
        for name, taken in seconds.items():
            found[name].step.append(min(taken))


def error_of(step: Callable[[], None]) -> str | None:
    """The first line of what a step raises."""
    try:
        step()
    except Exception as error:
        return first_line(error)
    return None


def peak_of_child(subject: Subject, system: str) -> float:
    """MiB, measured by this file in a process of its own."""
    command = [sys.executable, __file__, "--peak", system, "--models", subject.name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak(subject: Subject, name: str) -> float:
    """MiB of the process at the peak of a step."""

    def made(subject: Subject) -> Callable[[], None]:
        batch = subject.batch(0)
        model: GraphModule | None = exported(subject.module(), batch).module()
        if name != FLOAT:
            model = SYSTEMS[name]().prepare(model)
        return stepper(model, batch)

    made(SMALL)()  # loads all code
    step = made(subject)
    step()  # what torch keeps of a first run, and the gradients, are there in the next
    return peak_of(step)


@attrs.frozen
class Exactness:
    """Difference of a trained layer from what it is converted to.

    Args:
        variant: the layer.
        is_equal: whether ours, in evaluation mode, computes the same bits.
        against_trained: SQNR against the trained layer in evaluation mode, in dB, by the name of the system.
        against_float: SQNR against the layer in float, with the weights that were trained and its own eps.
        error: the first line of what torchao raised; None where it went through.
    """

    variant: Variant
    is_equal: bool
    against_trained: dict[str, float]
    against_float: dict[str, float]
    error: str | None


def exactness(variant: Variant) -> Exactness:
    """Train a layer with both systems, evaluate it, and convert it."""
    own = outputs(variant, torchquilt_training())
    found, error = {OURS: own}, None
    try:
        found[TORCHAO] = outputs(variant, torchao_training())
    except Exception as raised:
        error = first_line(raised)
    return Exactness(
        variant,
        torch.equal(own.evaluated, own.converted),
        {name: signal_to_noise([one.evaluated], [one.converted]) for name, one in found.items()},
        {name: signal_to_noise([one.in_float], [one.converted]) for name, one in found.items()},
        error,
    )


@attrs.frozen
class Outputs:
    """Of a trained layer: in evaluation mode, converted, and in float with the trained weights."""

    evaluated: torch.Tensor
    converted: torch.Tensor
    in_float: torch.Tensor


def outputs(variant: Variant, system: TrainingSystem) -> Outputs:
    """Train a layer, and compute what it is about."""
    module = variant.module()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = None  # statistics of these batches, and not of how they begin
    with torch.no_grad():
        for seed in range(VARIANT_STEPS):
            module(*variant.batch(seed))
    batch = variant.batch(1000)
    model = system.prepare(exported(module, batch).module())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for seed in range(VARIANT_STEPS):
        optimizer.zero_grad()
        model(*variant.batch(seed)).square().mean().backward()
        optimizer.step()
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    module.load_state_dict({name: trained[name] for name in module.state_dict()})
    system.to_evaluation(model)
    with torch.no_grad():
        evaluated = model(*batch)
        return Outputs(evaluated, system.convert(model)(*batch), module.eval()(*batch))


def table_of(titles: tuple[str, ...], texts: int) -> Table:
    """An empty table in the form that Markdown reads too, whose first columns hold text."""
    table = Table(box=box.MARKDOWN)
    for number, title in enumerate(titles):
        table.add_column(title, justify="left" if number < texts else "right", no_wrap=True)
    return table


def print_seconds(rows: list[Measured]) -> None:
    """Print the medians that ratios were made of, and the errors of torchao."""
    table = table_of(("model", "by", "prepare s", "step ms", "peak MiB"), 2)
    for row in rows:
        for name, by in row.systems.items():
            prepare = f"{statistics.median(by.prepare):.3f}" if by.prepare else "–"
            step = f"{statistics.median(by.step) * 1e3:.1f}" if by.step else "–"
            memory = "–" if by.memory != by.memory else f"{by.memory:,.0f}"
            table.add_row(row.subject.name, name, prepare, step, memory)
    Console(width=120, no_color=True).print(table)
    for row in rows:
        for name, by in row.systems.items():
            if by.error is not None:
                print(f"{row.subject.name}, {name}: {by.error}")


def print_figures(rows: list[Measured]) -> bool:
    """Print the ratios; whether all is reached."""
    table = table_of(("model", *FIGURES.values(), "torchao's step ÷ float", "its memory ÷ float"), 1)
    good = True
    for row in rows:
        cells = []
        for key, figure in row.figures().items():
            met = row.is_met(key, figure)
            good = good and met
            cells.append(_two_digits(figure) + ("" if met else " ✗"))
        theirs, float_ = row.systems[TORCHAO], row.systems[FLOAT]
        their_ratios = (_ratio(theirs.step, float_.step), theirs.memory / float_.memory)
        table.add_row(row.subject.name, *cells, *map(_two_digits, their_ratios))
    Console(width=170, no_color=True).print(table)
    return good


def _two_digits(figure: float) -> str:
    return "–" if figure != figure else f"{figure:.3f}" if figure < 0.1 else f"{figure:.2f}"


def print_exactness(rows: list[Exactness]) -> bool:
    """Print a row for each layer; whether ours are equal in all bits."""
    told = ("ours", "torchao's, dB", "ours to float, dB", "torchao's to float, dB")
    table = table_of(("converted, to trained", "eps", *told), 1)
    for row in rows:
        ours = "equal" if row.is_equal else f"{row.against_trained[OURS]:.1f} dB ✗"
        numbers = (row.against_trained.get(TORCHAO), row.against_float[OURS], row.against_float.get(TORCHAO))
        cells = ("–" if one is None else f"{one:.1f}" for one in numbers)
        table.add_row(row.variant.name, f"{row.variant.eps:.0e}", ours, *cells)
    Console(width=170, no_color=True).print(table)
    for row in rows:
        if row.error is not None:
            print(f"{row.variant.name}, {TORCHAO}: {row.error}")
    return all(row.is_equal for row in rows)


def write_json(path: Path, rows: list[Measured], exact: list[Exactness], setting: dict[str, Any]) -> None:
    """Write all runs unrounded: ``about``, ``rows`` and ``variants`` under these keys."""
    plain = [
        {
            "model": row.subject.name,
            "figures": {key: None if one != one else one for key, one in row.figures().items()},
            "systems": {name: attrs.asdict(by) for name, by in row.systems.items()},
        }
        for row in rows
    ]
    variants = [
        {**attrs.asdict(row, recurse=False), "variant": row.variant.name, "eps": row.variant.eps}
        for row in exact
    ]
    figures = {"about": setting, "rows": plain, "variants": variants}
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    """Run the benchmark and give its exit status."""
    names = [subject.name for subject in SUBJECTS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--models", nargs="*", default=names, choices=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="of which the median counts")
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="of a run; the fastest counts")
    parser.add_argument(
        "--variants", type=int, default=len(VARIANTS), metavar="N", help="of layers: the first ones"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    parser.add_argument("--peak", choices=[FLOAT, *SYSTEMS], help="print the peak of one model in MiB")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    subjects = [subject for subject in SUBJECTS if subject.name in arguments.models]
    if arguments.peak:
        print(peak(subjects[0], arguments.peak))
        return 0
    rows = []
    for subject in subjects:
        print(f"measuring {subject.name}", file=sys.stderr, flush=True)
        rows.append(measure(subject, arguments.runs, arguments.steps))
    exact = []
    for variant in VARIANTS[: arguments.variants]:
        print(f"training {variant.name}, eps {variant.eps:.0e}", file=sys.stderr, flush=True)
        exact.append(exactness(variant))
    setting = about("torchao", "executorch", runs=arguments.runs, steps=arguments.steps)
    print(", ".join(f"{name} {value}" for name, value in setting.items()) + "\n")
    print_seconds(rows)
    good = [print_figures(rows), print_exactness(exact)]
    if arguments.json:
        write_json(arguments.json, rows, exact, setting)
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
