"""A histogram over the leading bits of the float format, and the range of least squared error.

Binning. The bin of a float32 is its twelve leading bits: sign, eight of exponent, three of mantissa.
So each octave of magnitude has eight bins, of either sign; there are 4,096 of them, they cover every
float there is, and they never move. Counting is one pass; two histograms are merged by adding; the
order of the data cannot matter. Counts are int64, which makes 32 KiB.

Range. For a candidate range the squared error of quantization is the sum over bins of what is clipped
and of what is rounded; the spread inside a bin is taken as uniform. Candidate ends are the exact
minimum and maximum and the bin edges of the six octaves below them, on either side, and all pairs are
compared. This is the usual criterion (for example Nahshan et al. 2021, arXiv:1911.07190, with p = 2);
the evaluation in closed form is what the fixed bins make possible.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from torchquilt.observers.base import Observer, sentinel_limit
from torchquilt.spec import QuantizationSpec

if TYPE_CHECKING:
    from typing_extensions import Self

_MANTISSA_BITS = 3
_PER_OCTAVE = 2**_MANTISSA_BITS
_SHIFT = 23 - _MANTISSA_BITS
_SIDE = 2 ** (8 + _MANTISSA_BITS)  # bins of one sign
_SEARCHED_OCTAVES = 6
# What makes a finite value a masked one, see HistogramObserver.range.
_MASKED_FROM = 2.0**12
_MASKED_SHARE = 0.005
_ALWAYS_MASKED_FROM = 2.0**20


def _edges() -> torch.Tensor:
    """Lower edge of each magnitude bin that holds finite numbers, as float64."""
    bits = torch.arange(_SIDE, dtype=torch.int32) << _SHIFT
    edges = bits.view(torch.float32).double()
    return edges[torch.isfinite(edges)]


def _bin_of(magnitude: float) -> int:
    return int(torch.tensor(magnitude, dtype=torch.float32).view(torch.int32)) >> _SHIFT


class HistogramObserver(Observer):
    """Counts all values of a tensor by magnitude and sign; per tensor only.

    What cannot stretch the range: NaN and infinities; mask values, from half the largest number of the
    tensor's dtype on; and scores with a number such as -10,000 added (see :meth:`range`).
    """

    def __init__(self, spec: QuantizationSpec) -> None:
        super().__init__(spec)
        self.counts = torch.zeros(2, _SIDE, dtype=torch.int64)
        self.low = torch.tensor(math.inf)
        self.high = torch.tensor(-math.inf)

    def update(self, tensor: torch.Tensor) -> None:
        """Take in a float tensor; one pass over it."""
        if tensor.numel() == 0 or not tensor.is_floating_point():
            return
        values = tensor.detach().float().reshape(-1)
        limit = sentinel_limit(tensor.dtype)
        low, high = torch.aminmax(values)
        if not bool((low > -limit) & (high < limit)):  # true for NaN, too
            values = values[values.abs() < limit]
            self.ignored += tensor.numel() - values.numel()
            if values.numel() == 0:
                return
            low, high = torch.aminmax(values)
        self.count += values.numel()
        bins = torch.bitwise_right_shift(values.view(torch.int32), _SHIFT).bitwise_and_(2 * _SIDE - 1)
        self.counts += torch.bincount(bins, minlength=2 * _SIDE).view(2, _SIDE).to(self.counts.device)
        self.low = torch.minimum(self.low, low.to(self.low.device))
        self.high = torch.maximum(self.high, high.to(self.high.device))

    def merge(self, other: Self) -> None:
        """Take in what another observer saw."""
        self._check_mergeable(other)
        self.count += other.count
        self.ignored += other.ignored
        self.counts = self.counts + other.counts
        self.low = torch.minimum(self.low, other.low)
        self.high = torch.maximum(self.high, other.high)

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The range of least squared error, among the values that are not taken for masked ones.

        Masked scores (a score with -10,000 added) are negative, of magnitude 4,096 or more, at least half
        a percent of the values, and further from all others than the spec has levels: an integer grid that
        reached over such a gap would have a step larger than every score. Rarer and positive ones are data
        (a few activations of a language model are that large, and matter), up to a magnitude of a million;
        beyond that whatever stands so far apart is a mask.
        """
        self._check_has_data()
        positive, negative = self._without_masked_values()
        high, low = _least_squared_error(
            _Side(positive, float(self.high)), _Side(negative, -float(self.low)), self.spec
        )
        return torch.tensor(-low, dtype=torch.float32), torch.tensor(high, dtype=torch.float32)

    def _without_masked_values(self) -> torch.Tensor:
        counts = self.counts[:, : len(_edges())].clone()
        gap = max(self.spec.bits, 8) * _PER_OCTAVE
        # The bins below the smallest normal float hold zeros: they do not make a value to compare with.
        filled = [i for i in (counts.sum(dim=0) > 0).nonzero().flatten().tolist() if i >= _PER_OCTAVE]
        for below, above in pairwise(filled):
            if above - below > gap and above >= _bin_of(_MASKED_FROM):
                if int(counts[1, above:].sum()) >= _MASKED_SHARE * self.count:
                    counts[1, above:] = 0
                if above >= _bin_of(_ALWAYS_MASKED_FROM):
                    counts[:, above:] = 0
                break
        return counts


class _Side:
    """The values of one sign: candidate ends of the range, and sums over bins to judge them by.

    Args:
        counts: values in each magnitude bin.
        extreme: the largest magnitude that was seen, also where it is not counted any more.
    """

    def __init__(self, counts: torch.Tensor, extreme: float) -> None:
        edges = self.edges = _edges()
        last = int(counts.nonzero().max()) if counts.any() else -1
        top = 0.0 if last < 0 else min(max(extreme, 0.0), float(edges[min(last + 1, len(edges) - 1)]))
        number = counts.double()
        lower, upper = edges, torch.cat([edges[1:], edges[-1:]])
        if last >= 0:
            upper = upper.clone()
            upper[last] = top
        middle, width = (lower + upper) / 2, upper - lower
        square = number * (middle.square() + width.square() / 12)
        # Prefix sums: [k] is the sum over the bins below k.
        self.number = _prefix_sum(number)
        self.first = _prefix_sum(number * middle)
        self.second = _prefix_sum(square)
        lowest = max(last + 1 - _SEARCHED_OCTAVES * _PER_OCTAVE, 1)
        inner = torch.arange(min(lowest, last + 1), last + 1)
        self.cut = torch.cat([inner, torch.tensor([last + 1])])  # bins from here on are clipped
        self.end = torch.cat([edges[inner], torch.tensor([top], dtype=torch.float64)])

    def clipped(self) -> torch.Tensor:
        """Sum of squared distances beyond each candidate end."""
        number = self.number[-1] - self.number[self.cut]
        first = self.first[-1] - self.first[self.cut]
        second = self.second[-1] - self.second[self.cut]
        return second - 2 * self.end * first + self.end.square() * number

    def rounded(self, step: torch.Tensor, cut: torch.Tensor) -> torch.Tensor:
        """Sum of squared rounding errors inside: step²/12 a value, but its own square below half a step."""
        small = torch.minimum(torch.searchsorted(self.edges, step / 2), cut)
        return self.second[small] + step.square() / 12 * (self.number[cut] - self.number[small])


def _prefix_sum(values: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.float64), values.cumsum(0)])


def _least_squared_error(positive: _Side, negative: _Side, spec: QuantizationSpec) -> tuple[float, float]:
    """The pair of ends (high, -low) with the least squared error; the widest one where several tie."""
    high, low = positive.end[:, None], negative.end[None, :]
    steps = spec.quant_max - spec.quant_min
    step = torch.maximum(high, low) * 2 / steps if spec.symmetric else (high + low) / steps
    step = step.clamp(min=spec.eps)
    error = positive.clipped()[:, None] + negative.clipped()[None, :]
    error = error + positive.rounded(step, positive.cut[:, None].expand_as(step))
    error = error + negative.rounded(step, negative.cut[None, :].expand_as(step))
    best = int(error.flip(0, 1).argmin())  # argmin takes the first: flipped, that is the widest
    row, column = divmod(error.numel() - 1 - best, error.shape[1])
    return float(high[row, 0]), float(low[0, column])
