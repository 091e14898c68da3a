"""Statistics of the error of one tensor, taken in batch by batch."""

from __future__ import annotations

import math

import torch

from torchquilt.accuracy.comparison_values import ErrorFigures
from torchquilt.observers.extremes import sentinel_limit

#: Sums of squares from here on are exact in float32, and squares up to here are finite there.
_TINY, _LARGEST_SQUARED = 1e-30, 1e18


class ErrorStatistics:
    """Sums from which :class:`ErrorFigures` follow. Any split of the data gives the same.

    Values that the float tensor masks or that are no numbers there (NaN, infinities, from half the largest
    number of the dtype on) are left out, as observers leave them out.
    """

    def __init__(self) -> None:
        self.count = 0
        self.signal = self.noise = self.product = self.total = 0.0
        self.largest = 0.0
        #: values that are numbers in the float tensor, and none in the quantized one
        self.broken = 0

    def update(self, expected: torch.Tensor, found: torch.Tensor) -> None:
        """Take in a float tensor and its quantized counterpart, of one shape."""
        limit = sentinel_limit(expected.dtype)
        expected, found = _flat(expected), _flat(found)
        if not expected.numel():
            return
        noise = found - expected
        sums = _sums(expected, noise)
        # Masks, and numbers whose squares are too large or too small: in float64, without what is no data.
        if not _are_exact(sums) or _reaches(expected, limit):
            expected, noise = self._ordinary(expected, found, limit)
            sums = _sums(expected, noise)
        self.count += expected.numel()
        signal, power, product, total, largest = sums
        self.signal += signal
        self.noise += power
        self.product += product
        self.total += total
        self.largest = max(self.largest, largest)

    def _ordinary(
        self, expected: torch.Tensor, found: torch.Tensor, limit: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        is_data = expected.isfinite() & (expected.abs() < limit)
        is_broken = is_data & ~found.isfinite()
        self.broken += int(is_broken.sum())
        kept = is_data & ~is_broken
        return expected[kept].double(), found[kept].double() - expected[kept].double()

    def merge(self, other: ErrorStatistics) -> None:
        """Take in what another one saw."""
        for name in ("count", "signal", "noise", "product", "total", "broken"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.largest = max(self.largest, other.largest)

    def figures(self) -> ErrorFigures:
        """The error of everything that was taken in."""
        found = self.signal + 2 * self.product + self.noise
        return ErrorFigures(
            sqnr=-math.inf if self.broken else decibels(self.signal, self.noise),
            cosine=_cosine(self.signal, self.signal + self.product, found, self.noise),
            mean_error=self.total / self.count if self.count else 0.0,
            max_error=math.inf if self.broken else self.largest,
        )


def decibels(signal: float, noise: float) -> float:
    """Ratio of two sums of squares in dB."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(max(signal, 1e-60) / noise)


def _cosine(signal: float, product: float, found: float, noise: float) -> float:
    if noise == 0:
        return 1.0
    scale = math.sqrt(signal * max(found, 0.0))
    return max(-1.0, min(1.0, product / scale)) if scale else 0.0


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """All values in a row, in float32 at least."""
    flat = tensor.detach().reshape(-1)
    return flat if flat.dtype in (torch.float32, torch.float64) else flat.float()


def _are_exact(sums: tuple[float, ...]) -> bool:
    """Whether no square was too large or, as far as it counts, too small for float32."""
    signal, *_, largest = sums
    return all(map(math.isfinite, sums)) and (largest == 0 or (signal > _TINY and largest > _TINY**0.5))


def _reaches(values: torch.Tensor, limit: float) -> bool:
    """Whether there are masks, whose squares are finite: those of half precision are."""
    if limit > _LARGEST_SQUARED:
        return False
    low, high = values.aminmax()
    return max(-float(low), float(high)) >= limit


def _sums(expected: torch.Tensor, noise: torch.Tensor) -> tuple[float, float, float, float, float]:
    """Signal, noise, their product, the sum of the noise, and its largest magnitude."""
    if not expected.numel():
        return 0.0, 0.0, 0.0, 0.0, 0.0
    low, high = noise.aminmax()
    return (
        float(torch.dot(expected, expected)),
        float(torch.dot(noise, noise)),
        float(torch.dot(expected, noise)),
        float(noise.sum()),
        max(-float(low), float(high), 0.0),
    )
