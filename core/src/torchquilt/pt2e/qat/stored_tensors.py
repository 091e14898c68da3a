"""Modules between a stored tensor and the operator that reads it, where convert stores another one."""

from __future__ import annotations

import torch

from torchquilt.pt2e.qat.fake_quantize import gradient_through


class Copied(torch.nn.Module):
    """A tensor in the shape in which convert stores it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, broadcast to that shape."""
        return tensor if tensor.shape == self.shape else tensor.reshape(-1).expand(self.shape)


class FloatWeight(torch.nn.Module):
    """A weight in float, as the converted model has it in evaluation mode.

    torch multiplies in another order where a weight asks for gradients, even where none are computed.
    """

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight; without asking for gradients where none are computed."""
        return weight if self.training or torch.is_grad_enabled() else weight.detach()


class SettledBias(torch.nn.Module):
    """A bias, as the operator that reads it adds it.

    Args:
        reader: name of the node that reads it.
    """

    def __init__(self, reader: str) -> None:
        super().__init__()
        self.reader = reader
        #: what convert stores instead; None where it stores the bias itself
        self.settled: torch.Tensor | None = None

    def forward(self, bias: torch.Tensor) -> torch.Tensor:
        """The bias, or in evaluation mode what stands for it."""
        if self.training or self.settled is None or torch.compiler.is_compiling():
            return bias
        # One number for all channels may become one for each, which no gradient goes through.
        return gradient_through(bias, self.settled) if self.settled.shape == bias.shape else self.settled
