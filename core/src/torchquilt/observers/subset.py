"""Subset of a large tensor that a histogram reads.

The rule. Of a tensor with n values every ``step``-th in the order of memory is read, and counts ``step``
times. ``step`` is 1 up to 99,999 values; from there on it is the first number from ``min(n // 50000, 8)`` on
that has no divisor in common with n. So an eighth of the values or more is read, or little less; they lie
evenly over every dimension, whatever the sizes of these are. Where there are four dimensions or more, mostly
images and maps of features, in which neighbours are alike, it is ``min(n // 5000, 16)``, or
``min(n // 20000, 64)`` if that is more, and all is read up to 9,999. The first value is number
``(31 * low + high) mod step``, for the bits of the smallest and of the largest ordinary value of the tensor
as two int32. So it depends on nothing but the tensor, and shards merge to the same state; yet what stands at
one position of every batch (the first token's outlier) is read in one batch of ``step`` and counted for all
of them.

The error. Minimum and maximum are of all values, always. Values of which there are k in all the data are
counted as k, give or take ``sqrt(step * k)``, where they lie as if by chance. So it is the rare ones that are
off, and they move a range only where to clip them costs about as much as a finer scale saves. On ten batches
of data with tails of all kinds the tests allow 2 dB over the range that reading all of them gives (2.5 dB for
maps of features), which outliers of six in 100,000 come close to, and nothing over that of min-max where
there is a tail. Of maps of features fewer are read since it costs nothing: over five random draws of the
weights a quantized MobileNetV2 or ResNet-18 is in the mean as near to the float model as when all values are
read, within 0.1 dB, while other weights change it by half a dB.
"""

from __future__ import annotations

import functools
import math
import struct

import torch

from torchquilt.observers.extremes import Extremes

#: At least about so many values of a tensor are read, or all of them.
SIZE = 50_000
#: And about one in so many, or more.
STEP = 8
#: The same two for a tensor of four dimensions or more.
MAP_SIZE, MAP_STEP = 5_000, 16
#: And these, where they make it fewer: of a large one so many values, or one in so many.
LARGE_MAP_SIZE, LARGE_MAP_STEP = 20_000, 64


@functools.lru_cache(maxsize=4096)
def step_for(numel: int, dimensions: int) -> int:
    """Every how many values one is read, for a tensor of ``numel`` values in so many dimensions."""
    step = min(numel // SIZE, STEP)
    if dimensions >= 4:
        step = max(min(numel // MAP_SIZE, MAP_STEP), min(numel // LARGE_MAP_SIZE, LARGE_MAP_STEP))
    step = max(step, 1)
    while math.gcd(step, numel) != 1 and step > 1:
        step += 1
    return step


def subset(values: torch.Tensor, dimensions: int, extremes: Extremes) -> tuple[torch.Tensor, int]:
    """The values that a histogram reads, and how many each of them stands for.

    Args:
        values: floats in the order of memory, in one dimension.
        dimensions: how many the tensor has that they are of.
        extremes: those of all of ``values``.
    """
    step = step_for(values.numel(), dimensions)
    if step == 1:
        return values, 1
    size = values.numel() // step
    if values.is_cpu:
        ends = extremes.ends or (extremes.low.item(), extremes.high.item())
        first = (31 * _bits(ends[0]) + _bits(ends[1])) % step
        return values[first : step * size : step], step
    low, high = extremes.low.float(), extremes.high.float()
    seed = 31 * low.view(torch.int32).long() + high.view(torch.int32)
    index = torch.arange(size, device=values.device) * step + torch.remainder(seed, step)
    return values.index_select(0, index), step


def _bits(value: float) -> int:
    (found,) = struct.unpack("<i", struct.pack("<f", value))
    return int(found)
