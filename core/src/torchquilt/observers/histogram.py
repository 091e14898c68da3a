"""A histogram over the leading bits of the float format, and three ways to read a range from it.

Binning. The bin of a float32 is its twelve leading bits: sign, eight of exponent, three of mantissa.
So each octave of magnitude has eight bins, of either sign; they cover every float there is, and they never
move. Counting is one pass; two histograms are merged by adding; the order of the data cannot matter.
Counts are int64. The bins of infinities, NaN and mask values are not kept, which leaves 4,080: with all else
an observer keeps less than 32 KiB, whatever the data.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from torchquilt.errors import CalibrationError
from torchquilt.observers.base import OUTLIER_RATIO, ExtremesObserver, Observer
from torchquilt.observers.bins import MASKED_FROM, SHIFT, SIDE, Bins, magnitude_quantile
from torchquilt.observers.extremes import Extremes, extremes_of_all, in_memory_order, is_data, sentinel_limit
from torchquilt.observers.qparams import QParams, qparams_of_range
from torchquilt.observers.search import entropy_range, least_error_ranges
from torchquilt.observers.subset import subset
from torchquilt.spec.qspec import Granularity, QuantizationSpec

if TYPE_CHECKING:
    from typing_extensions import Self

# As tensors, since torch takes longer to wrap a number than to shift a thousand of them.
_SHIFT = torch.tensor(SHIFT, dtype=torch.int32)
_MASK = torch.tensor(2 * SIDE - 1, dtype=torch.int32)
#: From so many values on it is faster to count them apart and add the counts. (A GPU would have to wait.)
_MANY = 16384
#: The largest finite number that is no mask value lies in the bin before this one of its side.
_KEPT = SIDE - 16


@functools.lru_cache(maxsize=1024)
def _times(step: int, size: int, device: torch.device) -> torch.Tensor:
    """A number as often as values are read, in memory once. To expand it anew costs as much as to add it."""
    return torch.tensor(step, device=device).expand(size)


def _bins_of(values: torch.Tensor) -> torch.Tensor:
    return torch.bitwise_right_shift(values.float().view(torch.int32), _SHIFT).bitwise_and_(_MASK)


class HistogramObserver(ExtremesObserver):
    """Counts the values of a tensor by magnitude and sign; per tensor only. The range of least error.

    The error is that of squares; from 8 bits on what is clipped counts three times (see
    :func:`torchquilt.observers.search.least_error_ranges`). Of ranges whose error is within a fiftieth and
    ``1 / (2 sqrt(n)) + 10 / n`` of the least, for n values, the widest is taken, so of little data nearly all
    is kept. A few values far beyond all others get no more than twice the range of these (see
    :meth:`torchquilt.observers.bins.Bins.reach_beside_massive_values`).

    What cannot stretch the range: NaN and infinities; mask values, from half the largest number of the
    tensor's dtype on; and scores with a number such as -10,000 added (see
    :meth:`torchquilt.observers.bins.Bins.of`). Of a large tensor a part is counted, see
    :mod:`torchquilt.observers.subset`; smallest and largest value are always those of all of it.

    Raises:
        CalibrationError: the spec has several sets of parameters.
    """

    def __init__(self, spec: QuantizationSpec) -> None:
        super().__init__(spec)
        if spec.granularity is not Granularity.PER_TENSOR:
            raise CalibrationError(
                "A histogram is that of a whole tensor.",
                expected="granularity=per_tensor",
                got=str(spec),
                remedy="observe it with 'minmax'",
            )
        self.counts = torch.zeros(SIDE + _KEPT, dtype=torch.int64)
        self._set_extremes()

    def update(self, tensor: torch.Tensor) -> None:
        """Take in a float tensor: one pass over it for the extremes, and one over a part of it."""
        if not is_data(tensor):
            return
        values = in_memory_order(tensor.detach() if tensor.requires_grad else tensor)
        seen = extremes_of_all(values)
        read, step = subset(values, tensor.dim(), seen)
        if seen.ends is not None and read.is_cpu and read.numel() >= _MANY:
            self.counts.add_(torch.bincount(_bins_of(read), minlength=len(self.counts)), alpha=step)
        else:
            self._add(read, step, seen)
        self._take_counts(seen)
        self._take_extremes(seen)

    def _add(self, read: torch.Tensor, step: int, seen: Extremes) -> None:
        """Count values one by one, those that are infinite, NaN or masks not at all."""
        times = _times(step, read.numel(), read.device)
        if seen.ends is None:
            ordinary = read.abs() < sentinel_limit(read.dtype)
            read, times = read.masked_fill(~ordinary, 0.0), ordinary * times
        bins = _bins_of(read)
        if self.counts.device != bins.device:
            self.counts = self.counts.to(bins.device)
        self.counts.index_add_(0, bins, times)

    def merge(self, other: Self) -> None:
        """Take in what another observer saw."""
        self._check_mergeable(other)
        self._take_counts(other)
        self.counts = self.counts + other.counts.to(self.counts.device)
        self._take_extremes(other)

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The range that is chosen, among the values that are not taken for masked ones."""
        self._check_has_data()
        low, high = self.choose(self.bins())
        return torch.tensor(low, dtype=torch.float32), torch.tensor(high, dtype=torch.float32)

    def choose(self, bins: Bins) -> tuple[float, float]:
        """Low and high end for what was counted: of least error, beside massive values.

        A kind of one's own may choose others, from the smallest to the largest value that is counted, or 0.0.
        """
        beside = bins.range_beside_massive_values()
        return beside or least_error_ranges([bins], self.spec)[0]

    def extent(self) -> tuple[float, float]:
        """The magnitude that one value in a thousand is beyond, of either sign."""
        self._check_has_data()
        usual = magnitude_quantile(self.counts[:_KEPT] + self.counts[SIDE:], 0.999)
        return -usual, usual

    def outlier_ratio(self) -> float | None:
        """Ratio of the range to the 99.9th percentile of magnitudes."""
        low, high = (float(end) for end in self.range())
        reach, usual = max(0.0, -low, high), self.bins().magnitude_quantile(0.999)
        return reach / usual if usual else (math.inf if reach else 0.0)

    def has_outliers(self) -> bool | None:
        """Whether the range reaches more than a thousand times the 99.9th percentile of magnitudes."""
        largest = max(0.0, -float(self.low), float(self.high))
        # Where nothing can be masked, and all that was seen is not that large, no range has to be found.
        if largest < MASKED_FROM and largest <= OUTLIER_RATIO * self.extent()[1]:
            return False
        # Nor where the largest value that is counted is not that large: no range reaches beyond it.
        bins = self.bins()
        if bins.top <= OUTLIER_RATIO * bins.magnitude_quantile(0.999):
            return False
        return super().has_outliers()

    def apart(self) -> tuple[float, float] | None:
        """The share of values that the range is for, and how far the others reach, all less than one step."""
        if self.largest() < MASKED_FROM:
            return None
        bins, levels = self.bins(), 2**self.spec.bits - 1
        gaps = [gap for gap in bins.apart() if gap[1] < 2 * bins.top / levels]
        if not gaps:
            return None  # and no range has to be found
        low, high = (float(end) for end in self.range())
        step = (high - low) / levels
        found = (gap[:2] for gap in gaps if gap[1] < step and gap[2] <= max(-low, high))
        return next(found, None)

    def bins(self) -> Bins:
        """Counts without masked values."""
        counts = self.counts.cpu()
        sides = torch.stack([counts[:_KEPT], counts[SIDE:]])
        return Bins.of(sides, float(self.low), float(self.high), self.spec)


def qparams_together(observers: Iterable[Observer]) -> dict[Observer, QParams]:
    """The parameters of each :class:`HistogramObserver` among observers that has seen data.

    They are those of its ``qparams()``. To search for the ranges together takes a fraction of the time.
    """
    by_spec: dict[QuantizationSpec, list[HistogramObserver]] = {}
    for observer in observers:
        if type(observer) is HistogramObserver and observer.has_data:  # a subclass may choose otherwise
            by_spec.setdefault(observer.spec, []).append(observer)
    found: dict[Observer, QParams] = {}
    for spec, alike in by_spec.items():
        tables = {observer: observer.bins() for observer in alike}
        ranges = {observer: bins.range_beside_massive_values() for observer, bins in tables.items()}
        searched = [observer for observer, beside in ranges.items() if beside is None]
        ranges.update(
            zip(searched, least_error_ranges([tables[each] for each in searched], spec), strict=True)
        )
        low, high = torch.tensor([ranges[observer] for observer in alike], dtype=torch.float32).T
        together = qparams_of_range(low, high, spec)
        pairs = zip(together.scale.unbind(), together.zero_point.unbind(), strict=True)
        found.update((observer, QParams(*pair)) for observer, pair in zip(alike, pairs, strict=True))
    return found


class PercentileObserver(HistogramObserver):
    """The range that leaves out a given share of the values at either end.

    Args:
        spec: what the tensor will be; per tensor.
        percentile: above 50, at most 100: with 99.9 at most one value in a thousand lies above the range, and
            at most one in a thousand below it, to within the bins, of which there are eight an octave. With
            100 it is the range from the smallest to the largest value.
    """

    def __init__(self, spec: QuantizationSpec, percentile: float = 99.9) -> None:
        super().__init__(spec)
        if not 50 < percentile <= 100:
            raise CalibrationError(
                "A percentile says how many of a hundred values are not above the range.",
                expected="50 < percentile <= 100",
                got=percentile,
            )
        self.percentile = float(percentile)

    def settings(self) -> dict[str, Any]:
        """The percentile."""
        return {"percentile": self.percentile}

    def choose(self, bins: Bins) -> tuple[float, float]:
        """The two quantiles."""
        share = self.percentile / 100
        return min(bins.quantile(1 - share), 0.0), max(bins.quantile(share), 0.0)


class EntropyObserver(HistogramObserver):
    """The range that keeps most of the information: see :func:`torchquilt.observers.search.entropy_range`."""

    def choose(self, bins: Bins) -> tuple[float, float]:
        """The two ends of least divergence."""
        return entropy_range(bins, self.spec)
