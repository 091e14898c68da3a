"""The end of the way: a program for ExecuTorch, float and quantized, run side by side in this process."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import torchquilt as tq
from encoder import Batch

TURNS = 5
"""How often each program runs all batches; they take turns, and the median counts."""


@dataclass(frozen=True)
class Ran:
    """Outputs of a program, and how long it took.

    Args:
        milliseconds: for a batch: the median of all turns.
        embeddings: of the sentences, shape (sentences, width).
    """

    milliseconds: float
    embeddings: Tensor


def lower(
    name: str, model: Any, folder: Path, inputs: Batch | None = None, dynamic_shapes: Any = None
) -> tq.LoweredProgram:
    """Lower a model with the backends that quantized it, or without inputs a float program; and save it."""
    if inputs is None:
        program = tq.lower(model, backends=["xnnpack"])
    else:
        program = tq.lower(model, inputs, dynamic_shapes=dynamic_shapes)
    program.save(folder / f"{name.replace(' ', '_')}.pte")
    return program


def run_side_by_side(programs: dict[str, tq.LoweredProgram], batches: list[Batch]) -> dict[str, Ran]:
    """Run all batches with each program, in turns."""
    outputs: dict[str, Tensor] = {}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(TURNS + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            outputs[name] = torch.cat([program.run(*batch) for batch in batches])
            if turn:  # the first one makes room and loads what is needed
                seconds[name].append(time.perf_counter() - start)
    per_batch = 1e3 / len(batches)
    return {name: Ran(statistics.median(seconds[name]) * per_batch, outputs[name]) for name in programs}
