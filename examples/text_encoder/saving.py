"""Save a program, and run what was saved in a process that knows nothing of this one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from encoder import Batch

RUN_SAVED = Path(__file__).with_name("run_saved.py")


class SavedModelFailed(RuntimeError):
    """The fresh process did not get through; the message holds what it said."""


def save(program: ExportedProgram, path: Path) -> float:
    """Write ``program`` to ``path`` and give the size of the file in MB (10**6 bytes)."""
    torch.export.save(program, path)
    return path.stat().st_size / 1e6


def run_in_fresh_process(saved: Path, batches: list[Batch]) -> list[Tensor]:
    """The outputs for ``batches`` of the program in the file ``saved``, computed by a new Python process.

    It gets as many threads as this process: a matmul that is split otherwise may round otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="torchquilt-demo-") as exchange:
        inputs, outputs = Path(exchange, "inputs"), Path(exchange, "outputs")
        torch.save(batches, inputs)
        arguments = (RUN_SAVED, saved, inputs, outputs, torch.get_num_threads())
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SavedModelFailed(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr}")
        loaded: list[Tensor] = torch.load(outputs, weights_only=True)
    return loaded
