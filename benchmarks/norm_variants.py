"""Layers with a BatchNorm behind them, in the forms that models have: what a converter has to fold exactly.

Their inputs are small, so that variances are of the size of an eps of 1e-3, as those of quiet channels of
trained models are. There it shows whether a model is trained and converted with its own eps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import nn

QUIET = 0.1
"""Standard deviation of the inputs."""


class _Around(nn.Module):
    """A way around layers."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape that the layers keep."""
        return torch.relu(self.layers(x) + x)


@attrs.frozen
class Variant:
    """A form of a layer and its BatchNorm.

    Args:
        name: as it is printed.
        eps: of the BatchNorm.
        make: the module, for an eps.
        shape: of an input.
    """

    name: str
    eps: float
    make: Callable[[float], nn.Module]
    shape: tuple[int, ...] = (8, 8, 12, 12)

    def module(self) -> nn.Module:
        """The module in training mode, with the same random weights at each call."""
        torch.manual_seed(0)
        return self.make(self.eps).train()

    def batch(self, seed: int) -> tuple[torch.Tensor, ...]:
        """An input for one call, drawn with a seed."""
        return (torch.randn(self.shape, generator=torch.Generator().manual_seed(seed)) * QUIET,)


def _conv(eps: float, *more: nn.Module, channels: int = 8, **options: Any) -> nn.Sequential:
    """A convolution of 8 channels, its BatchNorm, and what is behind that."""
    options = {"kernel_size": 3, "padding": 1, **options}
    return nn.Sequential(nn.Conv2d(8, channels, **options), nn.BatchNorm2d(channels, eps=eps), *more)


def _affine_free(eps: float) -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, eps=eps, affine=False))


def _conv1d(eps: float) -> nn.Module:
    return nn.Sequential(nn.Conv1d(8, 8, 3), nn.BatchNorm1d(8, eps=eps), nn.ReLU())


def _transposed(eps: float) -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(8, 8, 3, stride=2), nn.BatchNorm2d(8, eps=eps))


def _linear(eps: float) -> nn.Module:
    return nn.Sequential(nn.Linear(32, 16), nn.BatchNorm1d(16, eps=eps), nn.ReLU())


VARIANTS = (
    Variant("conv", 1e-5, _conv),
    Variant("conv", 1e-4, _conv),
    Variant("conv", 1e-3, _conv),
    Variant("conv", 1e-2, _conv),
    Variant("conv without bias, relu", 1e-3, lambda eps: _conv(eps, nn.ReLU(), bias=False)),
    Variant("strided conv, relu6", 1e-2, lambda eps: _conv(eps, nn.ReLU6(), stride=2, channels=16)),
    Variant("depthwise conv", 1e-3, lambda eps: _conv(eps, groups=8)),
    Variant("two convs with a way around", 1e-4, lambda eps: _Around(_conv(eps, nn.ReLU(), *_conv(eps)))),
    Variant("norm without gamma and beta", 1e-3, _affine_free),
    Variant("conv1d, relu", 1e-3, _conv1d, (8, 8, 64)),
    Variant("transposed conv", 1e-3, _transposed),
    Variant("linear, relu", 1e-3, _linear, (64, 32)),
)
