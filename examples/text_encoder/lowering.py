"""The end of the way: a program for ExecuTorch, float and quantized, run side by side in this process."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

import torchquilt as tq
from encoder import Batch

TURNS = 5
"""How often each program runs all batches; they take turns, and the median counts."""
LOWERED_SIZE_RATIO = 0.3
"""A quarter, and room for scales and what stays in float."""


@dataclass(frozen=True)
class Lowered:
    """A program that was saved and run.

    Args:
        name: of the model.
        megabytes: of the file, 10**6 bytes.
        milliseconds: for a batch, the median of all turns, over all batches.
        embeddings: of the evaluation sentences, shape (sentences, width).
        integers: how many operators the delegates run as integers.
    """

    name: str
    megabytes: float
    milliseconds: float
    embeddings: Tensor
    integers: int


def lower(
    name: str, model: Any, folder: Path, inputs: Batch | None = None, dynamic_shapes: Any = None
) -> tuple[str, tq.LoweredProgram]:
    """Lower a model with the backends that quantized it, or without inputs a float program; and save it."""
    if inputs is None:
        program = tq.lower(model, backends=["xnnpack"])
    else:
        program = tq.lower(model, inputs, dynamic_shapes=dynamic_shapes)
    program.save(folder / f"{name.replace(' ', '_')}.pte")
    return name, program


def run_side_by_side(programs: dict[str, tq.LoweredProgram], batches: list[Batch]) -> tuple[Lowered, ...]:
    """Run all batches with each program, in turns."""
    outputs: dict[str, Tensor] = {}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(TURNS + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            outputs[name] = torch.cat([program.run(*batch) for batch in batches])
            if turn:  # the first one makes room and loads what is needed
                seconds[name].append(time.perf_counter() - start)
    return tuple(
        Lowered(
            name,
            program.size / 1e6,
            statistics.median(seconds[name]) * 1e3 / len(batches),
            outputs[name],
            len(program.integer_operations),
        )
        for name, program in programs.items()
    )


def print_programs(rows: tuple[Lowered, ...], agreements: dict[str, float]) -> None:
    """Print a row for each program, in the form that Markdown reads too."""
    table = Table(box=box.MARKDOWN)
    for title in ("program", "MB", "mean cosine", "integer operators", "ms a batch", "times as fast"):
        table.add_column(title, justify="left" if title == "program" else "right", no_wrap=True)
    for row in rows:
        ratio = rows[0].milliseconds / row.milliseconds
        table.add_row(
            f"{row.name}.pte",
            f"{row.megabytes:.2f}",
            f"{agreements[row.name]:.4f}",
            f"{row.integers}",
            f"{row.milliseconds:.1f}",
            f"{ratio:.2f}",
        )
    console = Console(width=120, no_color=True)
    with console.capture() as captured:
        console.print(table)
    print(captured.get().strip())
