"""A dozen models whose operators the vendors' quantizers are about."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from plugins.oracle import Model


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.norm(self.second(nn.functional.relu(self.first(x)))) + x)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(x).chunk(3, -1)
        weights = torch.softmax(torch.matmul(query, key.transpose(1, 2)) * 0.25, -1)
        return self.out(torch.matmul(weights, value))


class _Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.max_pool2d(torch.cat([self.left(x), nn.functional.relu(self.right(x))], 1), 2)


class _Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.value(x) * torch.sigmoid(self.gate(x)) + 1.0


class _Shapes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3, stride=2), nn.Linear(36, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.conv(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1))


class _Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.out = nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(nn.functional.gelu(self.norm(self.table(ids))).mean(1))


def _image(channels: int = 3, size: int = 8) -> torch.Tensor:
    return torch.randn(2, channels, size, size)


MODELS: dict[str, Callable[[], Model]] = {
    "linear": lambda: Model(nn.Linear(8, 4), (torch.randn(3, 8),)),
    "perceptron": lambda: Model(
        nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4, bias=False)), (torch.randn(3, 8),)
    ),
    "conv": lambda: Model(nn.Conv2d(3, 4, 3), (_image(),)),
    "conv bn relu": lambda: Model(
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()), (_image(),)
    ),
    "conv1d": lambda: Model(nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU()), (torch.randn(2, 3, 9),)),
    "depthwise": lambda: Model(
        nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Hardtanh(0.0, 6.0), nn.Conv2d(4, 6, 1)), (_image(4),)
    ),
    "residual": lambda: Model(_Residual(), (_image(4),)),
    "branches": lambda: Model(_Branches(), (_image(),)),
    "pooled head": lambda: Model(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), (_image(),)
    ),
    "attention": lambda: Model(_Attention(), (torch.randn(2, 5, 16),)),
    "gate": lambda: Model(_Gate(), (torch.randn(3, 8),)),
    "shapes": lambda: Model(_Shapes(), (_image(),)),
    "text": lambda: Model(_Text(), (torch.randint(0, 11, (2, 6)),)),
}


def model_of(name: str) -> Model:
    """A model with seeded weights and inputs."""
    torch.manual_seed(len(name))
    return MODELS[name]()
