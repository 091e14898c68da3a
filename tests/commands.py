"""Files that the command line reads in tests, and its answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import torch
from torch import nn

import torchquilt as tq


class Scores(nn.Module):
    """Something static, something that stays in float, and an input that can be out of range."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(8, 16)
        self.fc = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Tanh of a linear layer."""
        return torch.tanh(self.fc(x + self.table(ids)))


@attrs.frozen
class Files:
    """Files that the commands read.

    Args:
        model: a float program.
        recipe: static, of XNNPACK.
        dynamic: a recipe for which nothing has to be calibrated.
        data: four batches in one file.
        folder: the same, a file each.
    """

    model: Path
    recipe: Path
    dynamic: Path
    data: Path
    folder: Path


def recipe_of(preset: str) -> tq.Recipe:
    """XNNPACK everywhere."""
    return tq.Recipe.of(tq.quantizer("xnnpack", preset))


@attrs.frozen
class Answer:
    """Exit status and output of a command."""

    code: int
    out: str
    err: str


Run = Callable[..., Answer]
