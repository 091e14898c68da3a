"""The smallest and the largest value, for each set of parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torchquilt.observers.base import ExtremesObserver
from torchquilt.observers.extremes import extremes_of_parts, is_data, represented
from torchquilt.spec.qspec import QuantizationSpec

if TYPE_CHECKING:
    from typing_extensions import Self


class MinMaxObserver(ExtremesObserver):
    """Exact minimum and maximum of all ordinary values; per tensor, per axis or per group.

    NaN, infinities and mask values (see :func:`torchquilt.observers.extremes.sentinel_limit`) are counted
    and left out. Its state is two numbers for each set of parameters, and says nothing of outliers.
    """

    def __init__(self, spec: QuantizationSpec) -> None:
        super().__init__(spec)
        self._set_extremes()

    def update(self, tensor: torch.Tensor) -> None:
        """Take in a float tensor; one pass over it."""
        if is_data(tensor):
            seen = extremes_of_parts(tensor.detach() if tensor.requires_grad else tensor, self.spec)
            self._take_counts(seen)
            self._take_extremes(seen)

    def merge(self, other: Self) -> None:
        """Take in what another observer saw."""
        self._check_mergeable(other)
        self._take_counts(other)
        self._take_extremes(other)

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The smallest and the largest ordinary value, for each set of parameters."""
        self._check_has_data()
        return represented(self.low, self.high, self.spec)
