"""A small residual network with BatchNorm, and the loop that trains it: plain PyTorch, without torchquilt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from digits import Digits, disturbed

WIDTH = 6
"""Channels of the first layer. Few, so that each of them counts."""
BATCH = 50


class Block(nn.Module):
    """Two convolutions, and a way around them."""

    def __init__(self, before: int, behind: int, stride: int) -> None:
        super().__init__()
        self.first = _conv(before, behind, 3, stride)
        self.second = _conv(behind, behind, 3)
        self.around = _conv(before, behind, 1, stride) if stride != 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions find to the input."""
        return functional.relu(self.second(functional.relu(self.first(x))) + self.around(x))


def _conv(before: int, behind: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, behind, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(behind))


class Network(nn.Module):
    """Images of shape (N, 1, 8, 8) to scores of shape (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(1, WIDTH, 3)
        self.blocks = nn.Sequential(
            Block(WIDTH, WIDTH, 1),
            Block(WIDTH, 2 * WIDTH, 2),
            Block(2 * WIDTH, 2 * WIDTH, 1),
            Block(2 * WIDTH, 4 * WIDTH, 2),
        )
        self.head = nn.Linear(4 * WIDTH * 2 * 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Score each digit for each image."""
        scores: Tensor = self.head(self.blocks(functional.relu(self.stem(x))).flatten(1))
        return scores


def train(
    model: nn.Module,
    data: Digits,
    epochs: int,
    groups: list[dict[str, Any]],
    *,
    seed: int,
    at_epoch: Callable[[nn.Module, int], None] = lambda *_: None,
) -> None:
    """Train a model with AdamW, and leave it in evaluation mode.

    Args:
        model: the float model, or one that is prepared for training.
        data: the digits.
        epochs: how often each of them is seen.
        groups: groups of parameters, each with its largest learning rate.
        seed: of the order and the disturbances.
        at_epoch: called with the model and the number of each epoch, at its beginning.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = len(data.images) // BATCH
    optimizer = torch.optim.AdamW(groups)
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in groups], total_steps=epochs * steps, pct_start=0.2
    )
    model.train()
    for epoch in range(epochs):
        at_epoch(model, epoch)
        for chosen in torch.randperm(len(data.images), generator=generator).split(BATCH):
            scores = model(disturbed(data.images[chosen], generator))
            loss = functional.cross_entropy(scores, data.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """Percentage of the test set that a model names right."""
    found = model(data.test_images).argmax(1)
    return 100 * float((found == data.test_labels).float().mean())
