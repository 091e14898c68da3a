"""A bias in evaluation mode: what convert stores, where it has to be another one."""

from __future__ import annotations

import torch

from torchquilt.pt2e.qat.fake_quantize import gradient_through


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
