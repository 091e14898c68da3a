"""Counts of values by magnitude, as a range is read from them; masked ones are left out."""

from __future__ import annotations

import functools
import struct
from itertools import pairwise

import attrs
import torch

from torchquilt.spec.qspec import QuantizationSpec

_MANTISSA_BITS = 3
#: Bins of an octave of magnitude.
PER_OCTAVE = 2**_MANTISSA_BITS
#: A float32's bits, shifted by this to the right, are its bin.
SHIFT = 23 - _MANTISSA_BITS
#: Bins of one sign, those of infinities among them.
SIDE = 2 ** (8 + _MANTISSA_BITS)

# What makes a finite value a masked one, see Bins.of.
MASKED_FROM = 2.0**12
_MASKED_SHARE = 0.005
_ALWAYS_MASKED_FROM = 2.0**20
_MASK_BINS = 8
#: A number from here on has no square in float32, so no layer computes with it: it is what a mask became.
NO_DATA_FROM = 2.0**64
# Between which shares of the values a range is for some of them and not for the others, see Bins.apart.
_SOME, _MOST = 0.001, 0.9
_APART_GAP, _ENOUGH = 5 * PER_OCTAVE, 256
# What makes values massive ones, see Bins.reach_beside_massive_values.
_MASSIVE_SHARE = 1e-4
_MASSIVE_GAP = 3 * PER_OCTAVE
_MASSIVE_REACH = 2.0


@functools.cache
def edges() -> torch.Tensor:
    """Lower edge of each magnitude bin that holds finite numbers, as float64."""
    bits = torch.arange(SIDE - PER_OCTAVE, dtype=torch.int32) << SHIFT
    return bits.view(torch.float32).double()


def bin_of(magnitude: float) -> int:
    """The number of the bin of a magnitude, finite and not negative."""
    (bits,) = struct.unpack("<i", struct.pack("<f", magnitude))
    return int(bits) >> SHIFT


@attrs.frozen(eq=False)
class Bins:
    """Counts of magnitudes.

    Args:
        counts: int64 ``[2, bins]``: of values from 0.0 on, and of values below.
        low: the smallest value that is counted.
        high: the largest one.
    """

    counts: torch.Tensor
    low: float
    high: float

    @classmethod
    def of(cls, counts: torch.Tensor, low: float, high: float, spec: QuantizationSpec) -> Bins:
        """The counts without masked values.

        Masked scores (a score with -10,000 added) are negative, of magnitude 4,096 or more, at least half
        a percent of the values, and further from all others than the spec has levels: with a range that
        reached over such a gap the step would be larger than every score. Rarer and positive ones are data
        (a few activations of a language model are that large, and matter), up to a magnitude of a million;
        beyond that whatever stands so far apart is a mask, if it is negative or there are fewer of it than of
        the others. A number and some scores lie close together: where more than eight bins, or both signs,
        are filled so far out, they are data, up to 2**64. Behind a gap and beyond that nothing is data: what
        a linear, a sum or a product makes of ``torch.finfo(torch.float32).min`` has any sign and magnitude.

        Args:
            counts: as above, possibly of a part of the values.
            low: the smallest value of all.
            high: the largest value of all.
            spec: says how many levels there are.
        """
        counts = counts.clone()
        # Where a part was counted, the extremes need not be in it; but there is one of each.
        for side, extreme in enumerate((high, -low)):
            if extreme > 0:
                counts[side, bin_of(extreme)].clamp_(min=1)
        found = cls(counts, low, high)
        return found._without_masked_values(spec) if max(-low, high) >= MASKED_FROM else found

    def _without_masked_values(self, spec: QuantizationSpec) -> Bins:
        gap, least = max(spec.bits, 8) * PER_OCTAVE, bin_of(MASKED_FROM)
        beyond = [above for _, above in self._gaps(gap) if above >= least]
        if not beyond:
            return self
        counts = self.counts.clone()
        no_data = [above for above in beyond if above >= bin_of(NO_DATA_FROM)]
        if no_data:
            counts[:, no_data[0] :] = 0
        for side, is_masked in enumerate(Bins(counts, self.low, self.high)._are_masks(beyond[0])):
            if is_masked:
                counts[side, beyond[0] :] = 0
        return Bins(counts, max(self.low, -self._top_of(counts[1])), min(self.high, self._top_of(counts[0])))

    def _gaps(self, width: int) -> list[tuple[int, int]]:
        """The filled bins below and above each gap of more bins than that."""
        # The bins below the smallest normal float hold zeros: they do not make a value to compare with.
        filled = [i for i in self.counts.sum(dim=0).nonzero().flatten().tolist() if i >= PER_OCTAVE]
        return [pair for pair in pairwise(filled) if pair[1] - pair[0] > width]

    def apart(self) -> list[tuple[float, float, float]]:
        """Gaps beyond which some of the values, but not nearly all, lie far from all others.

        Fewer than one in a thousand are outliers, and told as such. Zeros are not counted, and of few values
        nothing is said.

        Returns:
            For each gap the share of the values beyond it, and the magnitudes that it lies between.
        """
        total = int(self.counts[:, PER_OCTAVE:].sum())
        if total < _ENOUGH:
            return []
        gaps = (
            (int(self.counts[:, above:].sum()) / total, float(edges()[below + 1]), float(edges()[above]))
            for below, above in self._gaps(_APART_GAP)
        )
        return [gap for gap in gaps if _SOME <= gap[0] <= _MOST]

    def _are_masks(self, first: int) -> tuple[bool, bool]:
        """Whether all from a bin on, which is far from the others, are masks: the positive, and the negative.

        Args:
            first: the first bin beyond the gap.
        """
        far = self.counts[:, first:]
        positive, negative = far.sum(dim=1).tolist()
        others = int(self.counts[:, PER_OCTAVE:first].sum())
        least = _MASKED_SHARE * int(self.counts.sum())
        if positive >= least and negative >= least:
            return False, False
        is_narrow = ((far > 0).sum(dim=1) <= _MASK_BINS).tolist()
        always = first >= bin_of(_ALWAYS_MASKED_FROM)
        return (
            is_narrow[0] and always and positive < others,
            is_narrow[1] and (always or negative >= least),
        )

    @staticmethod
    def _top_of(side: torch.Tensor) -> float:
        """The upper edge of the last bin that is not empty."""
        filled = side.nonzero()
        return float(edges()[int(filled.max()) + 1]) if len(filled) else 0.0

    @property
    def top(self) -> float:
        """The largest magnitude."""
        return max(0.0, -self.low, self.high)

    def reach_beside_massive_values(self) -> float | None:
        """Reach of a range where a few values are far beyond all others; None where none are.

        Transformers have such values: one for each sequence, mostly, a hundred times as large as what is
        usual (Sun et al. 2024, arXiv:2402.17762). Their squares outweigh those of all others together, so
        that least squared error would give all levels to them. They are less than one in 10,000, and
        nothing lies within three octaves below them; a range that reaches twice as far as the others do
        keeps them the largest, and levels for the others.
        """
        total, last = int(self.counts.sum()), bin_of(self.top)
        # Mostly there are too many values near the largest one for any gap below a few of them.
        if int(self.counts[:, max(last - _MASSIVE_GAP, 0) : last + 1].sum()) >= _MASSIVE_SHARE * total:
            return None
        counts = self.counts.sum(dim=0)
        beyond = counts.flip(0).cumsum(0).flip(0)  # from each bin on
        filled = ((counts > 0) & (beyond < _MASSIVE_SHARE * total)).nonzero().flatten().tolist()
        if not filled:
            return None
        others = counts[: filled[0]].nonzero()
        for below, above in reversed([*pairwise([int(others.max()), *filled])] if len(others) else []):
            if above - below > _MASSIVE_GAP and below >= PER_OCTAVE:
                return _MASSIVE_REACH * float(edges()[below + 1])
        return None

    def range_beside_massive_values(self) -> tuple[float, float] | None:
        """Low and high end of a range that reaches no further than that; None where no values are massive."""
        reach = self.reach_beside_massive_values()
        return None if reach is None else (min(max(self.low, -reach), 0.0), max(min(self.high, reach), 0.0))

    def quantile(self, share: float) -> float:
        """The value that a share of all values is not above, as if a bin's values lay evenly in it."""
        size = self.counts.shape[1]
        counts = torch.cat([self.counts[1].flip(0), self.counts[0]])
        at = _position(counts, share)
        index, part = int(at), at - int(at)
        bounds = edges()
        if index >= size:
            lower, upper = float(bounds[index - size]), float(bounds[index - size + 1])
        else:
            lower, upper = -float(bounds[size - index]), -float(bounds[size - index - 1])
        return min(max(lower + part * (upper - lower), self.low), self.high)

    def magnitude_quantile(self, share: float) -> float:
        """The magnitude that a share of all values is not above."""
        return min(magnitude_quantile(self.counts.sum(dim=0), share), self.top)


def magnitude_quantile(counts: torch.Tensor, share: float) -> float:
    """The magnitude that a share of the values is not above, as if a bin's values lay evenly in it.

    Args:
        counts: int64 ``[bins]``, of magnitudes.
        share: from 0 to 1.
    """
    at = _position(counts, share)
    lower, upper = edges()[int(at) : int(at) + 2].tolist()
    return float(lower + (at - int(at)) * (upper - lower))


def _position(counts: torch.Tensor, share: float) -> float:
    """Number of bins from the first on that hold a share of all values; the last of them may be a part."""
    reached = counts.cumsum(0)
    wanted = share * int(reached[-1])
    index = min(int(torch.searchsorted(reached, wanted)), len(counts) - 1)
    inside = int(counts[index])
    before = int(reached[index]) - inside
    return index + (min(max((wanted - before) / inside, 0.0), 1 - 2.0**-20) if inside else 0.0)
