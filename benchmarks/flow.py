"""Cost and accuracy of the flow: torchquilt beside torchao with ExecuTorch's XNNPACKQuantizer.

    python benchmarks/flow.py [--models NAME ...] [--chains 100 400 1600] [--runs 5] [--json FILE]

Both quantize the same exported model (static int8, one weight scale a channel, each with the observers that
it takes by itself), and take turns in one process; the medians of all runs are compared. What comes out is
compared with the float model on inputs that calibration has not seen. Each run draws other weights: where
these are random, a step that is off by a thousandth may change the noise of a whole model by tenths of a dB.
So of the differences, run by run, the median counts as well. Peak memory is measured in a process of its own
for each, in MiB of the operating system: how far the peak between prepare and convert lies above the peak of
running the float model, whose activations calibration has to hold as well.

torchao converts a long chain in a time that grows with the square of its length. A chain of more than
LONG blocks is given to torchao only once.

Exit status: 0 if every figure reaches what REACH says, 1 if not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from measuring import about, peak_of, signal_to_noise, timed
from models import MODELS, Subject, chain_of
from systems import System, torchao, torchquilt

LONG = 400
CALIBRATION = 4
"""Batches that are observed before the forward is timed."""
FORWARDS = 5
"""Calls in one timing of a forward; the fastest counts, which is the one that was disturbed least."""
HELD_OUT = 32
"""Batches on which what was made is compared with the float model."""


@attrs.frozen
class Reach:
    """Bound that a figure has to reach.

    Args:
        title: the figure.
        of_models, of_chains: the bound for models and for chains; None where there is none.
        is_least: the bound is a least one.
    """

    title: str
    of_models: float | None
    of_chains: float | None
    is_least: bool = False

    def bound(self, subject: Subject) -> float | None:
        """The bound for a subject."""
        return self.of_models if subject.blocks is None else self.of_chains

    def is_met(self, subject: Subject, figure: float) -> bool:
        """Whether a figure of a subject is good enough."""
        bound = self.bound(subject)
        return bound is None or (figure >= bound if self.is_least else figure <= bound)


REACH = {
    "calibrate": Reach("calibration ÷ float forward", 1.3, 4.0),
    "prepare": Reach("prepare ÷ torchao's", 0.15, 0.15),
    "convert": Reach("convert ÷ torchao's", 0.3, 0.3),
    "memory": Reach("peak memory ÷ float weights", 1.3, None),
    "sqnr": Reach("SQNR − torchao's, dB", -0.1, -0.1, is_least=True),
}
NODE_RATIO = 1.5
"""Seconds a node of the longest chain ÷ of the shortest, prepare and convert together."""


SYSTEMS = {"torchquilt": torchquilt, "torchao": torchao}


@attrs.define
class Timed:
    """The seconds of each run of one system, and how good what it made is, in dB."""

    prepare: list[float] = attrs.field(factory=list)
    calibrate: list[float] = attrs.field(factory=list)
    convert: list[float] = attrs.field(factory=list)
    sqnr: list[float] = attrs.field(factory=list)
    memory: float = float("nan")


@attrs.define
class Measured:
    """All that was measured of a model.

    Args:
        nodes: of the exported graph.
        weights: MiB of the float parameters.
        forward: seconds of a forward of the exported float model, one for each run.
        systems: by name.
    """

    subject: Subject
    nodes: int = 0
    weights: float = float("nan")
    forward: list[float] = attrs.field(factory=list)
    systems: dict[str, Timed] = attrs.field(factory=dict)

    def figures(self) -> dict[str, float]:
        """The figures that REACH is about."""
        ours, theirs = self.systems["torchquilt"], self.systems["torchao"]
        median = statistics.median
        return {
            "calibrate": median(ours.calibrate) / median(self.forward),
            "prepare": median(ours.prepare) / median(theirs.prepare),
            "convert": median(ours.convert) / median(theirs.convert),
            "memory": ours.memory / self.weights,
            # of the longest chain torchao has the first run only
            "sqnr": median(a - b for a, b in zip(ours.sqnr, theirs.sqnr, strict=False)),
        }

    def seconds_a_node(self) -> float:
        """Prepare and convert of ours."""
        ours = self.systems["torchquilt"]
        return (statistics.median(ours.prepare) + statistics.median(ours.convert)) / self.nodes


def fastest(function: Callable[[], object], calls: int = FORWARDS) -> float:
    """Seconds of the fastest of some calls."""
    function()
    return min(timed(function)[0] for _ in range(calls))


def run(program: torch.export.ExportedProgram, subject: Subject, system: System, into: Timed) -> None:
    """Once through the flow, noting how long each step took."""
    model = program.module()  # torchao changes what it is given
    seconds, prepared = timed(lambda: system.prepare(model))
    into.prepare.append(seconds)
    for seed in range(CALIBRATION):
        prepared(*subject.batch(seed))
    batch = subject.batch(0)
    into.calibrate.append(fastest(lambda: prepared(*batch)))
    seconds, converted = timed(lambda: system.convert(prepared))
    into.convert.append(seconds)
    into.sqnr.append(noise(program.module(), converted, subject))


def noise(model: torch.nn.Module, converted: torch.nn.Module, subject: Subject) -> float:
    """Signal to noise of what the converted model returns, in dB, on batches that were not observed."""
    batches = [subject.batch(seed) for seed in range(1000, 1000 + HELD_OUT)]
    return signal_to_noise((model(*batch) for batch in batches), (converted(*batch) for batch in batches))


@torch.no_grad()
def measure(subject: Subject, runs: int) -> Measured:
    """A subject under both systems, interleaved, after one run of each on a small model."""
    batch = subject.batch(0)
    found = Measured(subject)
    systems = {name: make() for name, make in SYSTEMS.items()}
    small = chain_of(1)
    for name, system in systems.items():
        run(torch.export.export(small.module(), small.batch(0)), small, system, Timed())
        found.systems[name] = Timed()
    for number in range(runs):
        module = subject.module(number)
        program = torch.export.export(module, batch)
        found.nodes = len(program.graph.nodes)
        found.weights = sum(p.numel() * p.element_size() for p in module.parameters()) / 2**20
        found.forward.append(fastest(partial(program.module(), *batch)))
        for name, system in systems.items():
            if number == 0 or name == "torchquilt" or (subject.blocks or 0) <= LONG:
                run(program, subject, system, found.systems[name])
    for name, into in found.systems.items():
        if subject.blocks is None:
            into.memory = peak_of_child(subject, name)
    return found


def peak_of_child(subject: Subject, system: str) -> float:
    """MiB, measured by this file in a process of its own."""
    command = [sys.executable, __file__, "--peak", system, "--models", subject.name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@torch.no_grad()
def peak(subject: Subject, name: str) -> float:
    """MiB at the peak between prepare and convert, above the peak of running the exported float model.

    That is run once before: what torch keeps of a first run, such as the code of its kernels, is no part of
    either.
    """
    system, small = SYSTEMS[name](), chain_of(1)
    run(torch.export.export(small.module(), small.batch(0)), small, system, Timed())  # loads all code
    program = torch.export.export(subject.module(), subject.batch(0))
    model, batch = program.module(), subject.batch(0)
    model(*batch)

    def flow() -> None:
        prepared = system.prepare(model)
        prepared(*batch)
        system.convert(prepared)

    running = peak_of(lambda: model(*batch))
    return peak_of(flow) - running


def print_figures(rows: list[Measured]) -> bool:
    """Print a row for each model, in the form that Markdown reads too; whether all is reached."""
    table = Table(box=box.MARKDOWN)
    table.add_column("model", no_wrap=True)
    for reach in REACH.values():
        table.add_column(reach.title, justify="right")
    good = True
    for row in rows:
        cells = []
        for key, figure in row.figures().items():
            met = REACH[key].is_met(row.subject, figure)
            good = good and met
            cells.append("–" if figure != figure else f"{figure:.2f}" + ("" if met else " ✗"))
        table.add_row(row.subject.name, *cells)
    Console(width=120, no_color=True).print(table)
    return good


def print_seconds(rows: list[Measured]) -> None:
    """Print the medians that the ratios were made of."""
    table = Table(box=box.MARKDOWN)
    titles = (
        "model",
        "by",
        "nodes",
        "prepare s",
        "calibrate ms",
        "float ms",
        "convert s",
        "SQNR dB",
        "peak MiB",
    )
    for title in titles:
        table.add_column(title, justify="left" if title in titles[:2] else "right", no_wrap=True)
    for row in rows:
        for name, by in row.systems.items():
            milliseconds = (statistics.median(by.calibrate) * 1e3, statistics.median(row.forward) * 1e3)
            prepare, convert = statistics.median(by.prepare), statistics.median(by.convert)
            table.add_row(
                row.subject.name,
                name,
                f"{row.nodes:,}",
                f"{prepare:.3f}",
                *(f"{value:.1f}" for value in milliseconds),
                f"{convert:.3f}",
                f"{statistics.median(by.sqnr):.1f}",
                "–" if by.memory != by.memory else f"{by.memory:.0f} of {row.weights:.0f}",
            )
    Console(width=130, no_color=True).print(table)


def ratio_of_chains(rows: list[Measured]) -> float | None:
    """Cost of a node of the longest chain, in nodes of the shortest; None without two chains."""
    chains = sorted((row for row in rows if row.subject.blocks), key=lambda row: row.subject.blocks or 0)
    return chains[-1].seconds_a_node() / chains[0].seconds_a_node() if len(chains) > 1 else None


def write_json(path: Path, rows: list[Measured], setting: dict[str, Any]) -> None:
    """Write all runs unrounded: ``about``, ``a_node`` and ``rows`` under these keys."""
    plain = [
        {
            "model": row.subject.name,
            "nodes": row.nodes,
            "weights": row.weights,
            "forward": row.forward,
            "figures": row.figures(),
            "systems": {name: attrs.asdict(by) for name, by in row.systems.items()},
        }
        for row in rows
    ]
    figures = {"about": setting, "a_node": ratio_of_chains(rows), "rows": plain}
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    """Run the benchmark and give its exit status."""
    names = [subject.name for subject in MODELS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="*", default=names, choices=names, metavar="NAME")
    parser.add_argument("--chains", type=int, nargs="*", default=[100, 400, 1600], metavar="N")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="of which the median counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    parser.add_argument("--peak", choices=SYSTEMS, help="print the peak memory of one model in MiB")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    subjects = [subject for subject in MODELS if subject.name in arguments.models]
    if arguments.peak:
        print(peak(subjects[0], arguments.peak))
        return 0
    rows = []
    for subject in [*subjects, *map(chain_of, sorted(arguments.chains))]:
        print(f"measuring {subject.name}", file=sys.stderr, flush=True)
        rows.append(measure(subject, arguments.runs))
    setting = about("torchao", "executorch", runs=arguments.runs)
    print(", ".join(f"{name} {value}" for name, value in setting.items()) + "\n")
    print_seconds(rows)
    good = print_figures(rows)
    ratio = ratio_of_chains(rows)
    if ratio is not None:
        good = good and ratio <= NODE_RATIO
        print(f"A node of the longest chain costs {ratio:.2f} times one of the shortest (≤ {NODE_RATIO}).")
    if arguments.json:
        write_json(arguments.json, rows, setting)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
