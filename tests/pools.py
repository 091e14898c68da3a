"""Average pooling with a divisor of its own: settings, and models that have it."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import nn
from torch.nn import functional

#: Settings of an average between layers, one for each thing that is written out.
BETWEEN: dict[str, dict[str, Any]] = {
    "no padding": {"kernel_size": 3, "stride": 1, "divisor_override": 5},
    "padding": {"kernel_size": 3, "stride": 1, "padding": 1, "divisor_override": 4},
    "padding not counted": {
        "kernel_size": (2, 3),
        "stride": 1,
        "padding": 1,
        "count_include_pad": False,
        "divisor_override": 7,
    },
    "ceil mode": {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "divisor_override": 10},
    "negative": {"kernel_size": 2, "stride": 1, "divisor_override": -3},
}
#: Sizes of images and volumes that :func:`settings` are for.
SIZES = {2: (9, 10), 3: (6, 7, 9)}


def settings(dimensions: int, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Settings of averages over so many dimensions, drawn at random, each with a divisor."""
    random = Random(seed)

    def drawn() -> dict[str, Any]:
        kernel = [random.randint(1, 4) for _ in range(dimensions)]
        return {
            "kernel_size": kernel,
            "stride": random.choice([[random.randint(1, 5) for _ in kernel], random.randint(1, 3), None]),
            "padding": [random.randint(0, size // 2) for size in kernel],
            "ceil_mode": random.random() < 0.5,
            "count_include_pad": random.random() < 0.5,
            "divisor_override": random.choice([1, 5, 7, 200, -1, -3]),
        }

    return [drawn() for _ in range(count)]


class Averages(nn.Module):
    """Averages of one input, one for each setting."""

    def __init__(self, asked: list[dict[str, Any]]) -> None:
        super().__init__()
        self.asked = asked

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Average images or volumes."""
        pool = functional.avg_pool2d if x.dim() == 4 else functional.avg_pool3d
        return tuple(pool(x, **one) for one in self.asked)


class Between(nn.Module):
    """An average of quantized values between convolutions."""

    def __init__(self, asked: dict[str, Any]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, bias=False)
        self.last = nn.Conv2d(8, 4, 3, bias=False)
        self.asked = asked

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve, pool, average and convolve."""
        y = functional.max_pool2d(self.first(x), 2, 1)
        found: torch.Tensor = self.last(functional.avg_pool2d(y, **self.asked))
        return found
