"""Latency on ExecuTorch: the float program, the one of torchao, and ours.

    python benchmarks/runtime.py [--models NAME ...] [--repeats 31] [--json FILE]

Each model is made a program for ExecuTorch's XNNPACK delegate three times: in float; quantized by torchao and
ExecuTorch's XNNPACKQuantizer, and lowered with ExecuTorch's own functions; and quantized and lowered by
torchquilt, embedding tables too. The three take turns in one process, all called in the same way. Compared
are the medians of all turns and, in brackets, the fastest of each, which were disturbed least: where the two
ratios are far apart the machine was busy, and neither says much. Told beside them, for both that are
quantized: how many operators the delegate runs as integers, how many islands of float there are between
them, and the signal to noise ratio against the float program, on an input that calibration has not seen.

The small models are whole, but their calls take microseconds, most of which the runtime takes by itself.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
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
from torch.utils import _pytree as pytree

import torchquilt as tq
from measuring import about, signal_to_noise, timed
from models import MODELS, Subject
from small_models import SMALL_MODELS
from systems import System, torchao, torchquilt

FLOAT, TORCHAO, OURS = "float", "torchao", "torchquilt"
CALIBRATION = 4
"""Batches that are observed."""
UNSEEN = 1000
"""The seed of the input that programs are run with."""
TURN = 0.02
"""Seconds that a turn should take at least: a short program is called that often in each."""
_SUBJECTS = (*SMALL_MODELS, *MODELS)


@attrs.define
class Made:
    """A program, what is in it, and how long it took.

    Args:
        program: as it is stored.
        integers: operators that the delegate runs as integers.
        islands: of float.
        sqnr: in dB, against the float program.
        seconds: of a call, one for each turn.
    """

    program: bytes = attrs.field(repr=False)
    integers: int
    islands: int
    sqnr: float = float("nan")
    seconds: list[float] = attrs.field(factory=list)

    @property
    def milliseconds(self) -> float:
        """Of a call, the median of all turns."""
        return statistics.median(self.seconds) * 1e3


@attrs.frozen
class Measured:
    """All that was measured of a model: its three programs by name, and how they were quantized."""

    subject: Subject
    made: dict[str, Made]

    def ratios(self, of: Callable[[list[float]], float] = statistics.median) -> dict[str, float]:
        """Time that a call of ours takes, in calls of the others; by the medians, or by what is given."""
        ours = of(self.made[OURS].seconds)
        return {name: ours / of(self.made[name].seconds) for name in (FLOAT, TORCHAO)}


def lowered_by_executorch(model: ExportedProgram) -> bytes:
    """The program that ExecuTorch's own functions make."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    edge = to_edge_transform_and_lower(model, partitioner=[XnnpackPartitioner()])
    return bytes(edge.to_executorch().buffer)


def quantized(model: ExportedProgram, subject: Subject, system: System) -> GraphModule:
    """Quantize a model with a system."""
    prepared = system.prepare(model.module())
    for seed in range(CALIBRATION):
        prepared(*subject.batch(seed))
    return system.convert(prepared)


def programs_of(subject: Subject) -> dict[str, Made]:
    """The three programs. What is in the first two is counted by our lowering, as for ours."""
    module, batch = subject.module(), subject.batch(0)
    exported = torch.export.export(module, batch)
    has_tables = any(isinstance(part, nn.Embedding) for part in module.modules())

    theirs = quantized(exported, subject, torchao(is_dynamic=subject.is_dynamic))
    ours = quantized(exported, subject, torchquilt(is_dynamic=subject.is_dynamic, has_tables=has_tables))
    # Not verified: how far each is from the float model is what is measured here, and no condition.
    counted = {
        FLOAT: tq.lower(exported, backends=["xnnpack"], verify=False),
        TORCHAO: tq.lower(theirs, batch, backends=["xnnpack"], verify=False),
        OURS: tq.lower(ours, batch, target="executorch", verify=False),
    }
    stored = {
        FLOAT: lowered_by_executorch(exported),
        TORCHAO: lowered_by_executorch(torch.export.export(theirs, batch)),
        OURS: counted[OURS].buffer,
    }
    return {
        name: Made(stored[name], len(program.integer_operations), len(program.float_islands))
        for name, program in counted.items()
    }


def opened(program: bytes) -> Callable[[tuple[torch.Tensor, ...]], list[torch.Tensor]]:
    """Open a program in the runtime. The caller keeps the result: the runtime reads from its memory."""
    import executorch.kernels.quantized  # noqa: F401  (registers the quantized kernels with the runtime)
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(program).load_method("forward")
    return lambda inputs: list(method.execute(inputs))


@torch.no_grad()
def measure(subject: Subject, repeats: int) -> Measured:
    """A model's programs, in turns."""
    found = Measured(subject, programs_of(subject))
    inputs = tuple(pytree.tree_leaves(subject.batch(UNSEEN)))
    calls = {name: opened(made.program) for name, made in found.made.items()}
    outputs = {name: [one.clone() for one in call(inputs)] for name, call in calls.items()}
    often = {}
    for name, call in calls.items():
        found.made[name].sqnr = signal_to_noise(outputs[FLOAT], outputs[name])
        seconds, _ = timed(lambda call=call: call(inputs))
        often[name] = max(1, round(TURN / seconds))
    for turn in range(repeats + 1):
        for name, call in calls.items():
            seconds, _ = timed(lambda call=call, n=often[name]: [call(inputs) for _ in range(n)])
            if turn:  # the first is to warm up
                found.made[name].seconds.append(seconds / often[name])
    return found


def print_table(rows: list[Measured]) -> None:
    """Print the medians, in the form that Markdown reads too. Both others and ours stand in a cell."""
    table = Table(box=box.MARKDOWN)
    titles = (
        "model", "float ms", "torchao ms", "ours ms", "ours ÷ float", "ours ÷ torchao",
        "integer operators", "islands of float", "kB", "SQNR dB",
    )  # fmt: skip
    for title in titles:
        table.add_column(title, justify="left" if title == "model" else "right")
    for row in rows:
        made, ratios, fastest = row.made, row.ratios(), row.ratios(min)
        both = [made[name] for name in (TORCHAO, OURS)]
        table.add_row(
            f"{row.subject.name}, {'dynamic' if row.subject.is_dynamic else 'static'}",
            *(f"{made[name].milliseconds:.3f}" for name in (FLOAT, TORCHAO, OURS)),
            *(f"{ratios[name]:.2f} ({fastest[name]:.2f})" for name in (FLOAT, TORCHAO)),
            " / ".join(str(one.integers) for one in both),
            " / ".join(str(one.islands) for one in both),
            " / ".join(f"{len(one.program) / 1e3:,.0f}" for one in (made[FLOAT], *both)),
            " / ".join(f"{one.sqnr:.1f}" for one in both),
        )
    Console(width=170, no_color=True).print(table)
    print("Operators, islands and SQNR: torchao's / ours. kB of the programs: float / torchao's / ours.")


def write_json(path: Path, rows: list[Measured], setting: dict[str, Any]) -> None:
    """Write all turns unrounded: ``about`` and ``rows`` under these keys."""
    plain = [
        {
            "model": row.subject.name,
            "mode": "dynamic" if row.subject.is_dynamic else "static",
            "ratios": row.ratios(),
            "ratios_of_fastest": row.ratios(min),
            "programs": {
                name: {
                    "nbytes": len(made.program),
                    "integer_operators": made.integers,
                    "float_islands": made.islands,
                    "sqnr": None if name == FLOAT else made.sqnr,
                    "seconds": made.seconds,
                }
                for name, made in row.made.items()
            },
        }
        for row in rows
    ]
    text = json.dumps({"about": setting, "rows": plain}, indent=2, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def runtime_threads() -> int:
    """Number of threads that the runtime computes with."""
    from executorch.extension.pybindings import portable_lib

    return int(portable_lib._threadpool_get_thread_count())


def main() -> int:
    """Run the benchmark."""
    names = [subject.name for subject in _SUBJECTS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--models", nargs="+", default=names, choices=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument(
        "--repeats", type=int, default=31, metavar="N", help="turns, of which the median counts"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows = []
    for subject in _SUBJECTS:
        if subject.name in arguments.models:
            print(f"measuring {subject.name}", file=sys.stderr, flush=True)
            rows.append(measure(subject, arguments.repeats))
    setting = about("executorch", "torchao", runtime_threads=runtime_threads(), repeats=arguments.repeats)
    print(", ".join(f"{name} {value}" for name, value in setting.items()) + "\n")
    print_table(rows)
    if arguments.json:
        write_json(arguments.json, rows, setting)
    return 0


if __name__ == "__main__":
    sys.exit(main())
