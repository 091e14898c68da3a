"""What every observer can do, and how values that are no data are told apart."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch

from torchquilt.errors import CalibrationError
from torchquilt.observers.qparams import QParams, qparams_of_range
from torchquilt.spec import QuantizationSpec

if TYPE_CHECKING:
    from typing_extensions import Self


def sentinel_limit(dtype: torch.dtype) -> float:
    """From this magnitude on a value says "masked", not a quantity: half the largest number of the dtype
    (for float64 half that of float32, in which ranges are kept).

    Attention masks are filled with ``torch.finfo(dtype).min``, and adding a score to it stays close.
    """
    return min(torch.finfo(dtype).max, torch.finfo(torch.float32).max) / 2


class Observer(ABC):
    """Collects what is needed to choose the parameters of one tensor. A value apart from any graph.

    Args:
        spec: what the tensor will be; says which elements share parameters.
    """

    def __init__(self, spec: QuantizationSpec) -> None:
        self.spec = spec
        #: how many ordinary values were seen
        self.count = 0
        #: how many NaN, infinities and mask values were seen; none of them moves a range
        self.ignored = 0

    @abstractmethod
    def update(self, tensor: torch.Tensor) -> None:
        """Take in a float tensor of any shape; empty tensors and other dtypes change nothing."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Take in all that another observer of the same kind and spec saw."""

    @abstractmethod
    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The low and high end that are to be represented, float32, in the shape of the parameters."""

    def qparams(self) -> QParams:
        """The parameters for what was seen.

        Raises:
            CalibrationError: nothing was seen.
        """
        return qparams_of_range(*self.range(), self.spec)

    @property
    def has_data(self) -> bool:
        """Whether any ordinary value was seen."""
        return self.count > 0

    def state(self) -> dict[str, Any]:
        """All that was seen so far, as plain values and tensors of its own."""
        return {key: _own(value) for key, value in vars(self).items() if key != "spec"}

    @classmethod
    def from_state(cls, spec: QuantizationSpec, state: dict[str, Any]) -> Self:
        """An observer that goes on where another one was when it gave its :meth:`state`."""
        observer = cls(spec)
        vars(observer).update({key: _own(value) for key, value in state.items()})
        return observer

    def _check_mergeable(self, other: Observer) -> None:
        if type(other) is not type(self) or other.spec != self.spec:
            raise CalibrationError(
                "These two observers did not look for the same thing, so they cannot be merged.",
                expected=f"{type(self).__name__} for {self.spec}",
                got=f"{type(other).__name__} for {other.spec}",
            )

    def _check_has_data(self) -> None:
        if not self.has_data:
            raise CalibrationError(
                "This observer saw no data."
                if not self.ignored
                else f"This observer saw nothing but {self.ignored} NaN, infinite or mask values.",
                remedy="run calibration batches that reach this tensor",
            )


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
