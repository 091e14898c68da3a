"""The search for a range among counted values: of least error, or of least divergence.

The spread of values inside a bin is taken as uniform. Candidate ends are the exact minimum and maximum and
the bin edges of the six octaves below them; beside the best of these, eighths of bins.

What is searched for a range is small, and torch takes longer to begin than to compute. So the ranges of many
tensors are searched for together, along a first dimension, and each comes out as it does alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import attrs
import torch

from torchquilt.observers.bins import PER_OCTAVE, SHIFT, Bins, bin_of, edges
from torchquilt.spec.qspec import QuantizationSpec

_SEARCHED_OCTAVES = 6
# Bins this far below the largest value hold what any scale rounds to zero at no cost: 2**-40 of it.
_SUMMED_OCTAVES = 40
_COMPARED_OCTAVES = 11
# How often the square counts of what is clipped, from 8 bits on and with fewer: see least_error_ranges.
_CLIPPED_COUNTS, _CLIPPED_COUNTS_OF_FEW_LEVELS = 3.0, 1.0
# Of ranges with about the same error the widest one is taken: see _tolerance.
_TOLERANCE = 0.02
# So finely the ends beside the best one are told apart: how much of the bin each of them leaves out.
_LEFT_OUT = 1 - torch.arange(1, 9, dtype=torch.float64) / 8
_PASSED = (_LEFT_OUT == 0).long()
# Back from the last bin that is filled.
_BACK = torch.arange(-_SEARCHED_OCTAVES * PER_OCTAVE, 1)
_WINDOW = _SUMMED_OCTAVES * PER_OCTAVE
# So many are searched for together: what is computed for them stays in the cache of a processor.
_TOGETHER = 32


def least_error_ranges(tables: Sequence[Bins], spec: QuantizationSpec) -> list[tuple[float, float]]:
    """For each table the widest pair of ends whose error is about the least.

    The error is the sum over bins of the squares of what is rounded, and three times those of what is
    clipped, for all pairs of candidates, and then for pairs of finer ends beside the best of these. To count
    both once is the usual criterion (for example Nahshan et al. 2021, arXiv:1911.07190, with p = 2). But
    roundings go either way and mostly cancel in the sums that a layer makes, while clipping always goes one
    way, and takes the largest values, which say most. With less than 8 bits a step is too large to spend it
    on these, and both count once. Fixed bins make the evaluation in closed form possible.

    Returns:
        Low and high ends, ``low <= 0 <= high``.
    """
    groups = (tables[start : start + _TOGETHER] for start in range(0, len(tables), _TOGETHER))
    return [found for group in groups for found in _search(group, spec)]


def _search(tables: Sequence[Bins], spec: QuantizationSpec) -> list[tuple[float, float]]:
    sums = _Sums(tables)
    ends = sums.coarse_ends()
    best = _errors(sums, ends, spec).flatten(1).argmin(1)
    ends = sums.ends_beside(ends, _pair(best, ends))
    error = _errors(sums, ends, spec)
    # What clips more than it has to for that is no better: it fits this data only.
    tolerance = torch.tensor([1 + _tolerance(bins) for bins in tables], dtype=torch.float64)
    most = error.flatten(1).amin(1).mul_(tolerance)
    wide = ends.end[:, 0, :, None] + ends.end[:, 1, None, :]
    wide.masked_fill_(error > most[:, None, None], -1.0)
    best = _pair(wide.flatten(1).argmax(1), ends)
    return [(0.0 - low, high) for high, low in ends.end.gather(2, best[..., None])[..., 0].tolist()]


def _pair(best: torch.Tensor, ends: _Ends) -> torch.Tensor:
    """The numbers of the ends of either sign, ``[tables, 2]``, for the numbers of pairs."""
    size = ends.end.shape[2]
    return torch.stack([torch.div(best, size, rounding_mode="floor"), best % size], 1)


def _tolerance(bins: Bins) -> float:
    """Relative difference of two errors that are taken for the same.

    A fiftieth, and ``1 / (2 sqrt(n)) + 10 / n`` for n values: a mean over n values differs by some
    ``1 / sqrt(n)`` from that over all data there will be, and among few values it is a handful that decides
    what is clipped. Ten values tell nothing about what may be clipped, and 100,000 nearly all of it.
    """
    number = max(int(bins.counts.sum()), 1)
    return _TOLERANCE + 0.5 / math.sqrt(number) + 10 / number


def _errors(sums: _Sums, ends: _Ends, spec: QuantizationSpec) -> torch.Tensor:
    """The error of each pair, ``[tables, highs, lows]``."""
    high, low = ends.end[:, 0, :, None], ends.end[:, 1, None, :]
    steps = spec.quant_max - spec.quant_min
    step = torch.maximum(high, low) * (2 / steps) if spec.symmetric else (high + low) / steps
    step = step.clamp_(min=spec.eps)
    # A value below half a step is rounded to zero, which costs its own square; others step² / 12 each.
    small = ((step / 2).float().view(torch.int32) >> SHIFT).long()
    small = small.add_(1 - sums.start[:, None, None]).clamp_(min=0)
    square = step.square_().div_(12)
    error = ends.clipped[:, 0, :, None] + ends.clipped[:, 1, None, :]
    error *= _CLIPPED_COUNTS if spec.bits >= 8 else _CLIPPED_COUNTS_OF_FEW_LEVELS
    for side in range(2):
        as_side = (len(small), -1, 1) if side == 0 else (len(small), 1, -1)
        inside = small.minimum(ends.cut[:, side].reshape(as_side)).flatten(1)
        error += sums.second[:, side].gather(1, inside).view_as(error)
        rounded = ends.number[:, side].reshape(as_side) - sums.number[:, side].gather(1, inside).view_as(
            error
        )
        error += rounded.mul_(square)
    return error


@functools.cache
def _padded_edges() -> torch.Tensor:
    """The edges of all bins, behind so many zeros that a window below the first of them can be read."""
    return torch.cat([torch.zeros(_WINDOW, dtype=torch.float64), edges()])


class _Sums:
    """Sums over the bins that can matter, a window of them for each table that ends with its largest value.

    Args:
        tables: what was counted.

    Attributes:
        start: ``[tables]``, the bin at which each window begins; below 0 it holds bins that do not exist.
        number, first, second: ``[tables, 2, bins + 1]``, the sums of the values' zeroth, first and second
            power before each bin, for values from 0.0 on and for those below.
    """

    def __init__(self, tables: Sequence[Bins]) -> None:
        sizes = [bin_of(bins.top) + 1 for bins in tables]
        self.start = torch.tensor(sizes) - _WINDOW
        self._edges = _padded_edges()[torch.tensor(sizes)[:, None] + torch.arange(_WINDOW + 1)][:, None]
        extremes = [(max(bins.high, 0.0), max(-bins.low, 0.0)) for bins in tables]
        #: the largest magnitude, and the number of its bin in the window; -1 where there is none
        self._extreme = torch.tensor(extremes, dtype=torch.float64)
        self._last = torch.tensor(
            [
                [max(bin_of(end) + _WINDOW - size, -1) if end > 0 else -1 for end in pair]
                for pair, size in zip(extremes, sizes, strict=True)
            ]
        )
        counts = torch.stack([_window_of(bins, size) for bins, size in zip(tables, sizes, strict=True)])
        lower, upper = self._edges[..., :-1], self._edges[..., 1:].repeat(1, 2, 1)
        # The last bin of a side ends at its largest magnitude.
        last = self._last.clamp(min=0)[..., None]
        ended = torch.where(self._last[..., None] < 0, upper.gather(2, last), self._extreme[..., None])
        upper.scatter_(2, last, ended)
        middle, width = (lower + upper).div_(2), upper - lower
        first = counts * middle
        second = (first * middle).add_(counts * width.square_().div_(12))
        before = torch.zeros(3, len(tables), 2, _WINDOW + 1, dtype=torch.float64)
        torch.cumsum(torch.stack([counts, first, second]), -1, out=before[..., 1:])
        self.number, self.first, self.second = before

    def coarse_ends(self) -> _Ends:
        """Ends at the edges of bins, and the exact extremes."""
        behind = (self._last + 1)[..., None]
        lowest = (1 - self.start).clamp_(min=0)[:, None, None].minimum(behind)  # never the edge 0.0
        cut = (behind + _BACK).maximum(lowest)
        end = self._edges.expand(-1, 2, -1).gather(2, cut)
        end = torch.where(cut == behind, self._extreme[..., None], end)
        first = self.first[..., -1:] - self.first.gather(2, cut)
        second = self.second[..., -1:] - self.second.gather(2, cut)
        return self._ends(end, cut, self.number.gather(2, cut), first, second)

    def ends_beside(self, ends: _Ends, best: torch.Tensor) -> _Ends:
        """Ends within the bins on both sides of one of the coarse ends. Values are spread evenly in a bin.

        Args:
            ends: the coarse ones.
            best: ``[tables, 2]``.
        """
        bins = torch.stack([best - 1, best], 2).clamp_(min=0, max=ends.end.shape[2] - 2)
        lower, upper = (ends.end.gather(2, at)[..., None] for at in (bins, bins + 1))
        before, behind = (ends.number.gather(2, at)[..., None] for at in (bins, bins + 1))
        end = upper - (upper - lower) * _LEFT_OUT
        number = behind - (behind - before) * _LEFT_OUT
        inside, both = number - before, lower + end
        first = ends.first.gather(2, bins)[..., None] - inside * both / 2
        second = ends.second.gather(2, bins)[..., None] - inside * (lower * both + end.square()) / 3
        below, above = (ends.cut.gather(2, at)[..., None] for at in (bins, bins + 1))
        cut = below + (above - below) * _PASSED
        return self._ends(*(values.flatten(2) for values in (end, cut, number, first, second)))

    def _ends(
        self,
        end: torch.Tensor,
        cut: torch.Tensor,
        number: torch.Tensor,
        first: torch.Tensor,
        second: torch.Tensor,
    ) -> _Ends:
        outside = self.number[..., -1:] - number
        clipped = second - 2 * end * first + end.square() * outside
        return _Ends(end, cut, number, first, second, clipped)


def _window_of(bins: Bins, size: int) -> torch.Tensor:
    """The counts of a window, float64 ``[2, bins]``."""
    counts = bins.counts[:, max(size - _WINDOW, 0) : size].double()
    return torch.nn.functional.pad(counts, (_WINDOW - counts.shape[1], 0)) if size < _WINDOW else counts


@attrs.frozen(eq=False)
class _Ends:
    """Candidate ends, and what each of them clips; all are ``[tables, 2, candidates]``.

    Args:
        end: the candidates, float64. One may stand there several times.
        cut: how many bins of the window it clips nothing of.
        number: how many values lie inside.
        first, second: the sums of the first and second power of the values that are clipped.
        clipped: the summed squared error of these.
    """

    end: torch.Tensor
    cut: torch.Tensor
    number: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    clipped: torch.Tensor


def entropy_range(bins: Bins, spec: QuantizationSpec) -> tuple[float, float]:
    """The range whose levels lose the least information about the values.

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
    counts[:, 0] += bins.counts[:, 1:window].sum(1)  # zeros are exact with any scale, and tell nothing
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
        step: between two levels.
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
        # Where values are clipped into an empty bin there is next to nothing to compare with.
        p, q = clipped / total, quantized.clamp(min=1e-12)
        found += float(torch.xlogy(p, p / q).sum())
    return found
