"""Layers with control flow inside, for random graphs: each maps the last dimension onto itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._higher_order_ops.map import map as map_rows
from torch._higher_order_ops.scan import scan


class Branches(nn.Module):
    """One of two linears, by the sign of the sum (cond)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> Any:
        """Shape in, shape out."""
        return torch.cond(
            x.sum() > 0, lambda x: torch.relu(self.first(x)), lambda x: self.second(x) + 0.5, (x,)
        )


class Frozen(nn.Module):
    """A linear and a relu under no_grad."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape in, shape out."""
        with torch.no_grad():
            return torch.relu(self.fc(x)) + x


class Rows(nn.Module):
    """A linear for each slice along the first dimension (map)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> Any:
        """Shape in, shape out."""
        return map_rows(lambda row: torch.relu(self.fc(row)) + 0.0, x)


class Recurrent(nn.Module):
    """A state that goes along the first dimension (scan)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> Any:
        """Shape in, shape out."""

        def step(state: torch.Tensor, row: torch.Tensor) -> Any:
            moved = torch.tanh(self.fc(state) + row)
            return moved, moved * 1.5

        return scan(step, torch.zeros_like(x[0]), x)[1]


#: Name → the layer of a width.
LAYERS = {"cond": Branches, "no_grad": Frozen, "map": Rows, "scan": Recurrent}
