"""The search for a range among counted values: of least squared error, or of least divergence.

The spread of values inside a bin is taken as uniform. Candidate ends are the exact minimum and maximum and
the bin edges of the six octaves below them.
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
# Of ranges with about the same error the widest one is taken.
_TOLERANCE = 1.05


def least_squares_range(bins: Bins, spec: QuantizationSpec) -> tuple[float, float]:
    """The widest pair of ends whose squared error is within a twentieth of the least.

    The error is the sum over bins of what is clipped and of what is rounded, for all pairs of candidates.
    This is the usual criterion (for example Nahshan et al. 2021, arXiv:1911.07190, with p = 2); the
    evaluation in closed form is what the fixed bins make possible.

    Returns:
        Low and high end, ``low <= 0 <= high``.
    """
    sums = _Sums(bins)
    positive, negative = _Side(sums, 0), _Side(sums, 1)
    high, low = positive.end[:, None], negative.end[None, :]
    steps = spec.quant_max - spec.quant_min
    step = torch.maximum(high, low) * (2 / steps) if spec.symmetric else (high + low) / steps
    step = step.clamp_(min=spec.eps)
    # A value below half a step is rounded to zero, which costs its own square; others step² / 12 each.
    small = ((step / 2).float().view(torch.int32) >> SHIFT).long().add_(1 - sums.first_bin).clamp_(min=0)
    square = step.square_().div_(12)
    error = positive.clipped[:, None] + negative.clipped[None, :]
    for side, cut in ((positive, positive.cut[:, None]), (negative, negative.cut[None, :])):
        inside = small.minimum(cut)
        error += side.second.take(inside)
        error += (side.number.take(cut) - side.number.take(inside)).mul_(square)
    # What clips more than it has to for that is no better: it fits this data only.
    wide = (high + low).masked_fill_(error > float(error.min()) * _TOLERANCE, -1.0)
    row, column = divmod(int(wide.argmax()), wide.shape[1])
    return 0.0 - float(low[0, column]), float(high[row, 0])


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
    """The candidate ends of one sign, and what each of them clips.

    Args:
        sums: over both signs.
        sign: 0 for values from 0.0 on, 1 for those below.
    """

    def __init__(self, sums: _Sums, sign: int) -> None:
        before, last = sums.before[:, sign], max(sums.last[sign], -1)
        self.number, self.second = before[0], before[2]
        lowest = max(last + 1 - _SEARCHED_OCTAVES * PER_OCTAVE, 1 if sums.first_bin == 0 else 0)
        lowest = min(lowest, last + 1)
        #: bins from here on are clipped
        self.cut = torch.arange(lowest, last + 2)
        self.end = sums.edges[lowest : last + 2].clone()
        self.end[-1] = sums.extremes[sign]
        number, first, second = before[:, -1:] - before[:, lowest : last + 2]
        self.clipped = second - 2 * self.end * first + self.end.square() * number


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
