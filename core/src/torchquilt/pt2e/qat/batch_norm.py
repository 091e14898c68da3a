"""A BatchNorm and the operator before it, trained as one.

This is the scheme of Krishnamoorthi 2018 (arXiv:1806.08342, section 3.2).

Integers compute with the folded weight ``W * s``, where ``s = gamma / sqrt(running_var + eps)`` for each
output channel. So that is what training fake quantizes; and the BatchNorm goes on to see the statistics of
each batch, since the factor is taken out again behind the rounding::

    y = batch_norm(conv(x, fq(W * s) / s, bias))

The factor is taken out of the weight and not of the output, which is the same and costs less: a convolution
is linear in the weight of each output channel. In evaluation mode, and where the BatchNorm is frozen, the
operator computes with the folded weight and bias, as the converted model does.
"""

from __future__ import annotations

from typing import Any

import torch

from torchquilt._internal.torch_private import is_in_backward
from torchquilt.graph.batch_norm_folding import Fold
from torchquilt.pt2e.qat.fake_quantize import ChannelFactor
from torchquilt.pt2e.qat.kept_switches import KeptSwitches


class TrainedNorm(KeptSwitches):
    """Base of BatchNorms that train; whether one is frozen is part of ``state_dict()``.

    Args:
        momentum: of the BatchNorm.
        path: of the module whose BatchNorm it is.
    """

    STATE_NAME = "is_frozen"

    def __init__(self, momentum: float, path: str) -> None:
        super().__init__()
        self.momentum = momentum
        self.path = path
        #: whether running statistics are used in training mode, too, and stay as they are
        self.is_frozen = False

    def switches(self) -> tuple[bool, ...]:
        """Whether it is frozen."""
        return (self.is_frozen,)

    def switch(self, switches: tuple[bool, ...]) -> str:
        """Restore whether it is frozen."""
        (self.is_frozen,) = switches
        return ""


class FoldedBatchNorm(TrainedNorm):
    """The steps around one operator with a BatchNorm behind it. The graph calls it once for each step.

    Its tensors belong to the model, and are handed in.

    Args:
        fold: the formulas.
        momentum: of the BatchNorm.
        path: of the module whose BatchNorm it is.
        channel_dim: the dimension of the output that has the channels.
    """

    def __init__(self, fold: Fold, momentum: float, path: str, *, channel_dim: int) -> None:
        super().__init__(momentum, path)
        self.fold = fold
        self.channel_dim = channel_dim
        self._inverse: torch.Tensor | None = None

    @property
    def is_unfolded(self) -> bool:
        """Whether the BatchNorm runs by itself, on statistics of the batch."""
        return self.training and not self.is_frozen

    def forward(self, step: str, *tensors: Any) -> Any:
        """Run one of the steps, by the name of the method."""
        return getattr(self, step)(*tensors)

    def factor(self, gamma: torch.Tensor | None, variance: torch.Tensor) -> torch.Tensor:
        """The factor of each output channel.

        One of zero, as where gamma begins as zero, cannot be taken out again, so none is put in.
        """
        found = self.fold.factor(self._kept_inverse(variance), gamma)
        return torch.where(found == 0, 1.0, found) if self.is_unfolded else found

    def _kept_inverse(self, variance: torch.Tensor) -> torch.Tensor:
        """``1 / sqrt(variance + eps)``; of the first time where a forward pass is repeated.

        The first time has moved the running variance since.
        """
        if not self.is_unfolded or torch.compiler.is_compiling():
            return self.fold.inverse(variance)
        if is_in_backward() and self._inverse is not None:
            return self._inverse
        self._inverse = self.fold.inverse(variance).detach()
        return self._inverse

    def folded(self, weight: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """The weight times the factor, unless the BatchNorm runs by itself: rounding multiplies then."""
        return weight if self.is_unfolded else self.fold.weight(weight, factor)

    def around(self, factor: torch.Tensor) -> ChannelFactor | None:
        """The factor that rounding multiplies with and divides by; None if the weight has it already."""
        return ChannelFactor(self.fold, factor) if self.is_unfolded else None

    def bias(
        self,
        bias: torch.Tensor | None,
        gamma: torch.Tensor | None,
        beta: torch.Tensor | None,
        mean: torch.Tensor,
        variance: torch.Tensor,
    ) -> torch.Tensor | None:
        """The folded bias; None if the BatchNorm runs by itself, since the bias is added behind it then."""
        if self.is_unfolded:
            return None
        dtype = mean.dtype if bias is None else bias.dtype
        return self.fold.bias(bias, mean, self.fold.inverse(variance), gamma, beta).to(dtype)

    def normalized(
        self,
        output: torch.Tensor,
        bias: torch.Tensor | None,
        gamma: torch.Tensor | None,
        beta: torch.Tensor | None,
        mean: torch.Tensor,
        variance: torch.Tensor,
        counter: torch.Tensor | None,
    ) -> torch.Tensor:
        """The output behind the BatchNorm."""
        if not self.is_unfolded:
            return output
        rows = output.movedim(self.channel_dim, 1) if self.channel_dim != 1 else output
        if bias is not None:
            rows = rows + bias.reshape(-1, *[1] * (rows.dim() - 2))
        found = batch_norm_in_training(
            rows, gamma, beta, mean, variance, counter, self.momentum, self.fold.eps
        )
        return found.movedim(1, self.channel_dim) if self.channel_dim != 1 else found


class BatchNorm(TrainedNorm):
    """A BatchNorm that is not folded, and trains as a BatchNorm.

    Args:
        momentum, eps: its own.
        path: of the module whose BatchNorm it is.
    """

    def __init__(self, momentum: float, eps: float, path: str) -> None:
        super().__init__(momentum, path)
        self.eps = eps

    def forward(
        self,
        output: torch.Tensor,
        gamma: torch.Tensor | None,
        beta: torch.Tensor | None,
        mean: torch.Tensor,
        variance: torch.Tensor,
        counter: torch.Tensor | None,
    ) -> torch.Tensor:
        """Normalize with the statistics of the batch in training mode, else with the running ones."""
        if self.training and not self.is_frozen:
            return batch_norm_in_training(
                output, gamma, beta, mean, variance, counter, self.momentum, self.eps
            )
        return torch.nn.functional.batch_norm(output, mean, variance, gamma, beta, False, 0.0, self.eps)


def batch_norm_in_training(
    output: torch.Tensor,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
    mean: torch.Tensor,
    variance: torch.Tensor,
    counter: torch.Tensor | None,
    momentum: float,
    eps: float,
) -> torch.Tensor:
    """Normalize with the statistics of the batch, and move the running ones.

    Where a forward pass is repeated for the backward one, they stay: they were moved the first time. A batch
    with NaN or infinite values leaves them as they were, too: the folded weight is computed from them.
    """
    # The operator keeps its inputs for the backward pass, and they must not change until then.
    moved = mean.clone(), variance.clone()
    found = torch.nn.functional.batch_norm(output, *moved, gamma, beta, True, momentum, eps)
    if is_in_backward():
        return found
    with torch.no_grad():
        if counter is not None:
            counter.add_(1)
        for running, new in zip((mean, variance), moved, strict=True):
            running.copy_(torch.where(new.isfinite(), new, running))
    return found
