"""Six whole models in small, with random weights: what tests and ``runtime.py`` lower.

Small, so that a test lowers them in seconds; whole, since what comes between layers decides what is left in
float. Each is a subject like those of ``models``.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from models import Subject


class Inverted(nn.Module):
    """The block of MobileNetV2: expand, depthwise, project, and the input again where it fits."""

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.is_residual = stride == 1 and channels == outputs
        self.layers = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block."""
        return x + self.layers(x) if self.is_residual else self.layers(x)


def mobile_net() -> nn.Module:
    """A stem, three blocks, and a classifier."""
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
    blocks = nn.Sequential(Inverted(8, 8, 1), Inverted(8, 12, 2), Inverted(12, 12, 1))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(12, 10))
    return nn.Sequential(stem, blocks, head)


class Residual(nn.Module):
    """The block of ResNet, whose one ReLU is called twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, 1, 1, bias=False) for _ in range(2))
        self.norm_1, self.norm_2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block."""
        y = self.relu(self.norm_1(self.first(x)))
        return self.relu(self.norm_2(self.second(y)) + x)


def res_net() -> nn.Module:
    """A stem with max-pool, two blocks, and a classifier."""
    stem = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    blocks = nn.Sequential(nn.MaxPool2d(3, 2, 1), Residual(8), Residual(8))
    return nn.Sequential(stem, blocks, head)


class Transformer(nn.Module):
    """A text encoder with learned positions, before whose layers nothing is masked."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(50, 16), nn.Embedding(12, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """A score for each class."""
        positions = torch.arange(tokens.shape[1])
        hidden = self.layers(self.words(tokens) + self.positions(positions))
        return self.head(hidden.mean(1))


class Decoder(nn.Module):
    """A layer of attention that reads and writes a cache of keys and values."""

    def __init__(self, length: int = 8) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.query, self.key, self.value, self.mix = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.down, self.out = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 50)
        self.norm = nn.LayerNorm(16)
        self.register_buffer("keys", torch.zeros(1, length, 16))
        self.register_buffer("values", torch.zeros(1, length, 16))

    def forward(self, token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """The scores of the next token."""
        hidden = self.words(token)
        x = self.norm(hidden)
        self.keys.index_copy_(1, position, self.key(x))
        self.values.index_copy_(1, position, self.value(x))
        scores = self.query(x) @ self.keys.transpose(1, 2) / 4
        later = torch.arange(self.keys.shape[1]) > position
        scores = scores.masked_fill(later, torch.finfo(torch.float32).min)
        hidden = hidden + self.mix(scores.softmax(-1) @ self.values)
        return self.out(hidden + self.down(functional.silu(self.up(hidden))))


class UNet(nn.Module):
    """One step down and up again, with what was before it joined."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.below = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.after, self.out = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A score for each pixel."""
        fine = self.before(x).relu()
        coarse = self.below(functional.max_pool2d(fine, 2)).relu()
        up = functional.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.out(self.after(torch.cat([fine, up], 1)).relu())


class UnrolledLSTM(nn.Module):
    """A cell that is called for each of four steps, and a classifier of the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.of_input, self.of_state = nn.Linear(6, 32), nn.Linear(8, 32)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A score for each class."""
        hidden, cell = torch.zeros(2, 8), torch.zeros(2, 8)
        for step in range(4):
            gates = self.of_input(x[:, step]) + self.of_state(hidden)
            into, forget, new, out = gates.chunk(4, 1)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(into) * torch.tanh(new)
            hidden = torch.sigmoid(out) * torch.tanh(cell)
        return self.head(hidden)


def _numbers(seed: int, *shape: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)),)


def _image(seed: int) -> tuple[torch.Tensor, ...]:
    return _numbers(seed, 1, 3, 32, 32)


def _small_image(seed: int) -> tuple[torch.Tensor, ...]:
    return _numbers(seed, 1, 3, 16, 16)


def _sequence(seed: int) -> tuple[torch.Tensor, ...]:
    return _numbers(seed, 2, 4, 6)


def _tokens(seed: int) -> tuple[torch.Tensor, ...]:
    return ((torch.arange(16).reshape(2, 8) * 7 + seed) % 50,)


def _first_token(seed: int) -> tuple[torch.Tensor, ...]:
    return torch.tensor([[(3 + seed) % 50]]), torch.tensor([0])


SMALL_MODELS = (
    Subject("mobile_net", mobile_net, _image),
    Subject("res_net", res_net, _image),
    Subject("transformer", Transformer, _tokens, is_dynamic=True),
    Subject("decoder", Decoder, _first_token, is_dynamic=True),
    Subject("u_net", UNet, _small_image),
    Subject("lstm", UnrolledLSTM, _sequence),
)
