"""The smallest and the largest value, for each set of parameters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from torchquilt.observers.base import Observer, sentinel_limit
from torchquilt.observers.qparams import as_rows
from torchquilt.spec import QuantizationSpec

if TYPE_CHECKING:
    from typing_extensions import Self


class MinMaxObserver(Observer):
    """Exact minimum and maximum of all ordinary values; per tensor, per axis or per group.

    NaN, infinities and mask values (see :func:`torchquilt.observers.base.sentinel_limit`) are counted
    and left out.
    """

    def __init__(self, spec: QuantizationSpec) -> None:
        super().__init__(spec)
        self.low = torch.tensor(math.inf)
        self.high = torch.tensor(-math.inf)

    def update(self, tensor: torch.Tensor) -> None:
        """Take in a float tensor; one pass over it."""
        if tensor.numel() == 0 or not tensor.is_floating_point():
            return
        rows, shape = as_rows(tensor.detach(), self.spec)
        low, high = rows.amin(dim=1), rows.amax(dim=1)  # twenty times as fast as aminmax along a dimension
        limit = sentinel_limit(rows.dtype)
        if bool(((low > -limit) & (high < limit)).all()):  # false for NaN, too
            self.count += rows.numel()
        else:
            ordinary = rows.abs() < limit
            low = rows.masked_fill(~ordinary, math.inf).amin(dim=1)
            high = rows.masked_fill(~ordinary, -math.inf).amax(dim=1)
            seen = int(ordinary.sum())
            self.count += seen
            self.ignored += rows.numel() - seen
        self._widen(low.float().reshape(shape), high.float().reshape(shape))

    def merge(self, other: Self) -> None:
        """Take in what another observer saw."""
        self._check_mergeable(other)
        self.count += other.count
        self.ignored += other.ignored
        self._widen(other.low, other.high)

    def _widen(self, low: torch.Tensor, high: torch.Tensor) -> None:
        self.low = torch.minimum(self.low.to(low.device), low)
        self.high = torch.maximum(self.high.to(high.device), high)

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The smallest and the largest ordinary value, for each set of parameters."""
        self._check_has_data()
        # A row that had no ordinary value at all is all zero as far as we know.
        empty = self.low > self.high
        if self.spec.uniform:
            return self.low.min().expand_as(self.low), self.high.max().expand_as(self.high)
        return self.low.masked_fill(empty, 0.0), self.high.masked_fill(empty, 0.0)
