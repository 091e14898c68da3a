"""Protocol of observers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from torchquilt.errors import CalibrationError
from torchquilt.observers.extremes import Extremes
from torchquilt.observers.qparams import QParams, qparams_of_range
from torchquilt.spec.qspec import QuantizationSpec

if TYPE_CHECKING:
    from typing_extensions import Self

#: A range this many times as wide as the magnitude that 99.9 % of the values stay below is mostly unused.
OUTLIER_RATIO = 1000.0


class Observer(ABC):
    """Collects what is needed to choose the parameters of one tensor. A value apart from any graph.

    Counts are ints. Where the data is on a device that would have to be waited for, they are tensors of no
    dimension there until :meth:`state` is asked for.

    Args:
        spec: what the tensor will be; says which elements share parameters.
    """

    #: Whether what is found depends on the order of the data. Such observers cannot be merged.
    order_matters: ClassVar[bool] = False
    #: Whether to see a tensor once more, unchanged, may change what is found. Others are spared that.
    counts_repeats: ClassVar[bool] = False

    def __init__(self, spec: QuantizationSpec) -> None:
        self.spec = spec
        #: how many ordinary values were seen
        self.count: Any = 0
        #: how many NaN, infinities and mask values were seen; none of them moves a range
        self.nan: Any = 0
        self.infinite: Any = 0
        self.masked: Any = 0

    @abstractmethod
    def update(self, tensor: torch.Tensor) -> None:
        """Take in a float tensor of any shape; empty tensors and other dtypes change nothing."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Take in all that another observer of the same kind and spec saw.

        Raises:
            CalibrationError: it is of another kind or for another spec, or this kind cannot be merged.
        """

    @abstractmethod
    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The low and high end that are to be represented, float32, in the shape of the parameters."""

    def qparams(self) -> QParams:
        """The parameters for what was seen.

        Raises:
            CalibrationError: nothing was seen.
        """
        return qparams_of_range(*self.range(), self.spec)

    def extent(self) -> tuple[float, float]:
        """Two numbers that follow the range and cost little, to see whether more data still moves it."""
        low, high = self.range()
        return float(low.min()), float(high.max())

    def outlier_ratio(self) -> float | None:
        """Ratio of the range to the 99.9th percentile of magnitudes; None if not known."""
        return None

    def has_outliers(self) -> bool | None:
        """Whether the range reaches more than :data:`OUTLIER_RATIO` times that far; None if not known."""
        ratio = self.outlier_ratio()
        return None if ratio is None else ratio > OUTLIER_RATIO

    def largest(self) -> float:
        """A magnitude that the range does not reach beyond, which costs little."""
        low, high = self.range()
        return max(0.0, -float(low.min()), float(high.max()))

    def apart(self) -> tuple[float, float] | None:
        """The share of values that the range is for, and how far the others reach, all less than one step.

        None where that is not so, or not known.
        """
        return None

    @property
    def ignored(self) -> Any:
        """Number of values that were no data: NaN, infinities and mask values."""
        return self.nan + self.infinite + self.masked

    @property
    def has_data(self) -> bool:
        """Whether any ordinary value was seen."""
        return bool(self.count > 0)

    def settings(self) -> dict[str, Any]:
        """Keyword arguments, beside the spec, with which this observer was made."""
        return {}

    def fresh(self) -> Self:
        """An observer of the same kind, with the same settings, that saw nothing."""
        return type(self)(self.spec, **self.settings())

    def state(self) -> dict[str, Any]:
        """All that was seen so far, as plain values and tensors of its own on the CPU.

        The same data gives the same bits, whatever its order and the device that it was on.
        """
        found = {key: _own(value) for key, value in vars(self).items() if key != "spec" and key[0] != "_"}
        for key in ("count", "nan", "infinite", "masked"):
            found[key] = int(found[key])
        return found

    @classmethod
    def from_state(cls, spec: QuantizationSpec, state: dict[str, Any]) -> Self:
        """An observer that goes on where another one was when it gave its :meth:`state`."""
        observer = cls(spec)
        vars(observer).update({key: _own(value) for key, value in state.items()})
        return observer

    def _take_counts(self, other: Extremes | Observer) -> None:
        self.count = self.count + other.count
        self.nan = self.nan + other.nan
        self.infinite = self.infinite + other.infinite
        self.masked = self.masked + other.masked

    def _check_mergeable(self, other: Observer) -> None:
        if type(other) is not type(self) or other.spec != self.spec:
            raise CalibrationError(
                "These two observers did not look for the same thing, so they cannot be merged.",
                expected=f"{type(self).__name__} for {self.spec}",
                got=f"{type(other).__name__} for {other.spec}",
            )

    def _check_has_data(self) -> None:
        if not self.has_data:
            ignored = int(self.ignored)
            raise CalibrationError(
                "This observer saw no data."
                if not ignored
                else f"This observer saw nothing but {ignored} NaN, infinite or mask values.",
                remedy="run calibration batches that reach this tensor",
            )


class ExtremesObserver(Observer):
    """An observer that keeps the smallest and the largest value, for each set of parameters."""

    #: float32, in the shape of the parameters once something was seen; inf where nothing was
    low: torch.Tensor
    #: likewise; -inf where nothing was
    high: torch.Tensor

    def _set_extremes(self) -> None:
        self.low, self.high = torch.tensor(math.inf), torch.tensor(-math.inf)
        # Two numbers that are known to lie between low and high: most tensors widen nothing, and to compare
        # numbers costs less than to call an operator.
        self._inside = (math.inf, -math.inf)

    def largest(self) -> float:
        """The largest magnitude of any ordinary value."""
        return max(0.0, -float(self.low.min()), float(self.high.max()))

    def _take_extremes(self, other: Extremes | Self) -> None:
        ends = other.ends if isinstance(other, Extremes) else None
        if ends is not None:
            low, high = self._inside
            if low <= ends[0] and ends[1] <= high:
                return
            self._inside = (min(low, ends[0]), max(high, ends[1]))
        # A scalar of the CPU goes with tensors of any device; of two devices the newer one counts.
        if self.low.device != other.low.device and self.low.dim():
            self.low, self.high = self.low.to(other.low.device), self.high.to(other.low.device)
        self.low = torch.minimum(self.low, other.low)
        self.high = torch.maximum(self.high, other.high)


def _own(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach().cpu().clone()
    # Which of 0.0 and -0.0 a minimum returns depends on the order of the two; added to 0.0 they are one.
    return value + 0.0 if value.is_floating_point() else value
