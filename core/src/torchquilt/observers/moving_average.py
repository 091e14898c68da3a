"""The moving average of each batch's smallest and largest value. It depends on the order of the data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch

from torchquilt.errors import CalibrationError
from torchquilt.observers.base import Observer
from torchquilt.observers.extremes import extremes_of_parts, is_data, represented
from torchquilt.spec.qspec import QuantizationSpec

if TYPE_CHECKING:
    from typing_extensions import Self


class MovingAverageObserver(Observer):
    """Minimum and maximum, each moved by a share of the way towards those of every further tensor.

    As ``torch.ao.quantization.MovingAverageMinMaxObserver`` has it. What comes last counts most, so data in
    another order ends in another state, and what several observers saw cannot be merged. Per tensor, per axis
    or per group.

    Args:
        spec: what the tensor will be.
        share: how far each tensor moves the average, above 0, at most 1.
    """

    order_matters: ClassVar[bool] = True

    def __init__(self, spec: QuantizationSpec, share: float = 0.01) -> None:
        super().__init__(spec)
        if not 0 < share <= 1:
            raise CalibrationError(
                "A moving average moves by a share of the way.", expected="0 < share <= 1", got=share
            )
        self.share = share
        self.low = torch.tensor(math.inf)
        self.high = torch.tensor(-math.inf)

    def settings(self) -> dict[str, Any]:
        """The share."""
        return {"share": self.share}

    def update(self, tensor: torch.Tensor) -> None:
        """Take in a float tensor; one pass over it."""
        if is_data(tensor):
            seen = extremes_of_parts(tensor.detach(), self.spec)
            self._take_counts(seen)
            self.low = moved(self.low.to(seen.low.device), seen.low, self.share)
            self.high = moved(self.high.to(seen.high.device), seen.high, self.share)

    def merge(self, other: Self) -> NoReturn:
        """Refuse: nothing says which of two observers saw its data first.

        Raises:
            CalibrationError: always.
        """
        raise CalibrationError(
            "Moving averages depend on the order of the data, so they cannot be merged.",
            expected="an observer whose state does not depend on it",
            got=type(self).__name__,
            remedy="observe all data in one process, or with 'histogram' or 'minmax'",
        )

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The averages, for each set of parameters."""
        self._check_has_data()
        return represented(self.low, self.high, self.spec)


def moved(average: torch.Tensor, seen: torch.Tensor, share: float) -> torch.Tensor:
    """An end of a range, moved by a share of the way towards that of another tensor.

    Args:
        average: infinite where nothing was seen yet.
        seen: infinite where nothing in the tensor is data.
        share: of the way.
    """
    now = torch.where(average.isinf(), seen, average + share * (seen - average))
    return torch.where(seen.isinf(), average, now)
