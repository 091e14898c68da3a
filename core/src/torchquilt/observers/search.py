"""The search for a range among counted values: of least squared error, or of least divergence.

The spread of values inside a bin is taken as uniform. Candidate ends are the exact minimum and maximum and
the bin edges of the six octaves below them; beside the best of these, eighths of bins.
"""

from __future__ import annotations

import math

import torch

from torchquilt.observers.bins import PER_OCTAVE, SHIFT, Bins, bin_of, edges
from torchquilt.spec import QuantizationSpec

_SEARCHED_OCTAVES = 6
# Bins this far below the largest value hold what any grid rounds to zero at no cost: 2**-40 of it.
_SUMMED_OCTAVES = 40
_COMPARED_OCTAVES = 11
# Of ranges with about the same error the widest one is taken: see _tolerance.
_TOLERANCE = 0.02
# So finely the ends beside the best one are told apart.
_PARTS = torch.arange(1, 9, dtype=torch.float64) / 8
_PASSED = (_PARTS == 1).long()


def least_squares_range(bins: Bins, spec: QuantizationSpec) -> tuple[float, float]:
    """The widest pair of ends whose squared error is about the least: no more above it than is known.

    The error is the sum over bins of what is clipped and of what is rounded, for all pairs of candidates, and
    then for pairs of finer ends beside the best of these. This is the usual criterion (for example Nahshan
    et al. 2021, arXiv:1911.07190, with p = 2); fixed bins make the evaluation in closed form possible.

    Returns:
        Low and high end, ``low <= 0 <= high``.
    """
    sums = _Sums(bins)
    positive, negative = _Side(sums, 0), _Side(sums, 1)
    highs, lows = positive.coarse_ends(), negative.coarse_ends()
    error = _errors(highs, lows, spec)
    row, column = divmod(int(error.argmin()), error.shape[1])
    highs, lows = positive.ends_beside(highs, row), negative.ends_beside(lows, column)
    error = _errors(highs, lows, spec)
    # What clips more than it has to for that is no better: it fits this data only.
    wide = highs.end[:, None] + lows.end[None, :]
    wide.masked_fill_(error > float(error.min()) * (1 + _tolerance(bins)), -1.0)
    row, column = divmod(int(wide.argmax()), wide.shape[1])
    return 0.0 - float(lows.end[column]), float(highs.end[row])


def _tolerance(bins: Bins) -> float:
    """How far two errors may be apart, relatively, and still be taken for the same.

    A fiftieth, and ``1 / (2 sqrt(n)) + 10 / n`` for n values: a mean over n values differs by some
    ``1 / sqrt(n)`` from that over all data there will be, and among few values it is a handful that decides
    what is clipped. Ten values tell nothing about what may be clipped, and 100,000 nearly all of it.
    """
    number = max(int(bins.counts.sum()), 1)
    return _TOLERANCE + 0.5 / math.sqrt(number) + 10 / number


def _errors(highs: _Ends, lows: _Ends, spec: QuantizationSpec) -> torch.Tensor:
    """The summed squared error of each pair, ``[highs, lows]``."""
    high, low = highs.end[:, None], lows.end[None, :]
    steps = spec.quant_max - spec.quant_min
    step = torch.maximum(high, low) * (2 / steps) if spec.symmetric else (high + low) / steps
    step = step.clamp_(min=spec.eps)
    # A value below half a step is rounded to zero, which costs its own square; others step² / 12 each.
    first_bin = highs.side.first_bin
    small = ((step / 2).float().view(torch.int32) >> SHIFT).long().add_(1 - first_bin).clamp_(min=0)
    square = step.square_().div_(12)
    error = highs.clipped[:, None] + lows.clipped[None, :]
    for ends, shape in ((highs, (-1, 1)), (lows, (1, -1))):
        inside = small.minimum(ends.cut.view(shape))
        error += ends.side.second.take(inside)
        error += (ends.number.view(shape) - ends.side.number.take(inside)).mul_(square)
    return error


class _Sums:
    """Sums over the bins that can matter: of the values' zeroth, first and second power, before each bin."""

    def __init__(self, bins: Bins) -> None:
        size = bin_of(bins.top) + 1
        self.first_bin = max(size - _SUMMED_OCTAVES * PER_OCTAVE, 0)
        self.edges = edges()[self.first_bin : size + 1]
        self.extremes = (max(bins.high, 0.0), max(-bins.low, 0.0))
        self.last = [bin_of(end) - self.first_bin if end > 0 else -1 for end in self.extremes]
        counts = bins.counts[:, self.first_bin : size].double()
        lower, upper = self.edges[:-1], self.edges[1:].repeat(2, 1)
        for side, (last, extreme) in enumerate(zip(self.last, self.extremes, strict=True)):
            if last >= 0:
                upper[side, last] = extreme  # the last bin of a side ends at its largest magnitude
        middle, width = (lower + upper).div_(2), upper - lower
        first = counts * middle
        second = (first * middle).add_(counts * width.square_().div_(12))
        self.before = torch.zeros(3, 2, counts.shape[1] + 1, dtype=torch.float64)
        torch.cumsum(torch.stack([counts, first, second]), -1, out=self.before[:, :, 1:])


class _Side:
    """What was counted of one sign.

    Args:
        sums: over both signs.
        sign: 0 for values from 0.0 on, 1 for those below.
    """

    def __init__(self, sums: _Sums, sign: int) -> None:
        self.number, self.first, self.second = sums.before[:, sign]
        self.first_bin = sums.first_bin
        last = max(sums.last[sign], -1)
        lowest = max(last + 1 - _SEARCHED_OCTAVES * PER_OCTAVE, 1 if sums.first_bin == 0 else 0)
        lowest = min(lowest, last + 1)
        #: the exact extreme, and the edges of the octaves below it
        self.end = sums.edges[lowest : last + 2].clone()
        self.end[-1] = sums.extremes[sign]
        #: the bins before them, whose values are not clipped
        self.kept = slice(lowest, last + 2)

    def coarse_ends(self) -> _Ends:
        """Ends at the edges of bins."""
        first = self.first[-1] - self.first[self.kept]
        second = self.second[-1] - self.second[self.kept]
        cut = torch.arange(self.kept.start, self.kept.stop)
        return _Ends(self, self.end, cut, self.number[self.kept], first, second)

    def ends_beside(self, ends: _Ends, best: int) -> _Ends:
        """Ends within the bins on both sides of one of the coarse ends. Values are spread evenly in a bin."""
        start = max(best - 1, 0)
        number_of_bins = min(best + 2, len(ends.end)) - start - 1
        if number_of_bins < 1:
            return ends
        here, next_ = slice(start, start + number_of_bins), slice(start + 1, start + 1 + number_of_bins)
        lower, before = ends.end[here, None], ends.number[here, None]
        end = torch.lerp(lower, ends.end[next_, None], _PARTS)
        number = torch.lerp(before, ends.number[next_, None], _PARTS)
        inside = number - before
        first = ends.first[here, None] - inside * (lower + end).div_(2)
        second = ends.second[here, None] - inside * (lower * (lower + end)).add_(end.square()).div_(3)
        cut = ends.cut[here, None] + _PASSED
        return _Ends(self, *(values.flatten() for values in (end, cut, number, first, second)))


class _Ends:
    """Candidate ends of one sign, and what each of them clips.

    Args:
        side: what was counted of that sign.
        end: the candidates, float64.
        cut: for each of them the number of bins of which it clips nothing.
        number: how many values lie inside.
        first, second: the sums of the first and second power of the values that are clipped.
    """

    def __init__(
        self,
        side: _Side,
        end: torch.Tensor,
        cut: torch.Tensor,
        number: torch.Tensor,
        first: torch.Tensor,
        second: torch.Tensor,
    ) -> None:
        self.side, self.end, self.cut = side, end, cut
        self.number, self.first, self.second = number, first, second
        self.clipped = second - (2 * end) * first + end.square().mul_(side.number[-1] - number)


def entropy_range(bins: Bins, spec: QuantizationSpec) -> tuple[float, float]:
    """The range whose grid tells least about other values than were there.

    The criterion is that of Migacz 2017 (8-bit inference with TensorRT): the Kullback-Leibler divergence from
    the distribution of the values, clipped, to what is left of it once all values of a level are one. Both
    ends are cut at one magnitude. The bins are ours, so a level is looked into where it holds several bins;
    as there, nothing finer than 1/2048 of the largest magnitude is told apart. It is about shares of values
    and not about their size, so it may clip what least squared error keeps.

    Returns:
        Low and high end, ``low <= 0 <= high``.
    """
    steps = spec.quant_max - spec.quant_min
    size = bin_of(bins.top) + 1
    window = max(size - _COMPARED_OCTAVES * PER_OCTAVE, 1)
    counts = bins.counts[:, window:size].double()
    if counts.numel() == 0:
        return min(bins.low, 0.0), max(bins.high, 0.0)
    counts[:, 0] += bins.counts[:, 1:window].sum(1)  # zeros are exact on any grid, and tell nothing
    inner = range(size - 1, max(size - _SEARCHED_OCTAVES * PER_OCTAVE, 1), -1)
    bounds = edges()[window : size + 1].clone()
    bounds[-1] = max(bins.top, float(bounds[-2]) * (1 + 2.0**-20))
    best, least = (min(bins.low, 0.0), max(bins.high, 0.0)), math.inf
    for end in (float(bounds[-1]), *(float(edges()[index]) for index in inner)):
        low, high = min(max(bins.low, -end), 0.0), max(min(bins.high, end), 0.0)
        size = max(int((bounds[:-1] < end).sum()), 1)
        step = 2 * max(-low, high) / steps if spec.symmetric else (high - low) / steps
        found = _divergence(counts, bounds, size, max(step, spec.eps))
        if found < least:
            best, least = (low, high), found
    return best


def _divergence(counts: torch.Tensor, bounds: torch.Tensor, size: int, step: float) -> float:
    """KL(clipped ‖ quantized) of what was counted in bins between some bounds.

    Args:
        counts: float64 ``[2, bins]``, of either sign.
        bounds: float64 ``[bins + 1]``.
        size: how many bins of each sign are not clipped; at least 1.
        step: of the grid.
    """
    total, kept = float(counts.sum()), float(counts[:, :size].sum())
    if kept == 0:
        return math.inf
    found = 0.0
    for side in counts:
        inside = side[:size]
        clipped = inside.clone()
        clipped[-1] += side[size:].sum()
        width = (bounds[1 : size + 1] - bounds[:size]) * (inside > 0)
        levels = ((bounds[1 : size + 1] + bounds[:size]) / (2 * step)).round()
        _, level = torch.unique_consecutive(levels, return_inverse=True)
        mass, room = torch.zeros(2, size, dtype=torch.float64)
        mass.index_add_(0, level, inside)
        room.index_add_(0, level, width)
        quantized = (mass / room.clamp(min=torch.finfo(torch.float64).tiny))[level] * width / kept
        # Where values are clipped to a place that had none there is next to nothing to compare with.
        p, q = clipped / total, quantized.clamp(min=1e-12)
        found += float(torch.xlogy(p, p / q).sum())
    return found
