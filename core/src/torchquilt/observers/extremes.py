"""The smallest and the largest value of a tensor among those that are data, and how many are not.

NaN, infinities and mask values are no data. One pass over the tensor shows whether there are any. On the CPU
the answer is looked at, and only a tensor that has some is gone over again. On other devices looking would
mean to wait for all that was started there, so they are always told apart, on the device.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import attrs
import torch

from torchquilt.observers.qparams import as_rows
from torchquilt.spec.qspec import Granularity, QuantizationSpec


@functools.cache
def sentinel_limit(dtype: torch.dtype) -> float:
    """From this magnitude on a value says "masked", not a quantity: half the largest number of the dtype
    (for float64 half that of float32, in which ranges are kept).

    Attention masks are filled with ``torch.finfo(dtype).min``, and adding a score to it stays close.
    """
    return min(torch.finfo(dtype).max, torch.finfo(torch.float32).max) / 2


def represented(
    low: torch.Tensor, high: torch.Tensor, spec: QuantizationSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """The range that is going to be represented, from the smallest and the largest value that were seen.

    Args:
        low: for each set of parameters; above ``high`` where nothing was seen, which counts as zeros.
        high: likewise.
        spec: says whether all sets of parameters are to be the same.
    """
    if spec.uniform:
        low, high = low.min().expand_as(low), high.max().expand_as(high)
    is_empty = low > high
    return low.masked_fill(is_empty, 0.0), high.masked_fill(is_empty, 0.0)


def is_data(tensor: torch.Tensor) -> bool:
    """Whether a tensor has anything to observe: elements, of a real floating-point type."""
    return tensor.is_floating_point() and tensor.numel() > 0


@attrs.frozen(eq=False)
class Extremes:
    """Facts about a tensor after one look at it.

    Args:
        low: the smallest ordinary value, float32, in the shape of the parameters; inf where there is none.
        high: the largest one; -inf where there is none.
        count: how many values are ordinary. This and the others are ints, or tensors on the device.
        nan: how many are NaN.
        infinite: how many are infinite.
        masked: how many are mask values, see :func:`sentinel_limit`.
        ends: low and high of a tensor as a whole as numbers, where all values are known to be ordinary.
    """

    low: torch.Tensor
    high: torch.Tensor
    count: Any
    nan: Any = 0
    infinite: Any = 0
    masked: Any = 0
    ends: tuple[float, float] | None = None


def in_memory_order(tensor: torch.Tensor) -> torch.Tensor:
    """All elements in one dimension: without a copy wherever they fill their memory, transposed or not."""
    if tensor.is_contiguous():
        return tensor.flatten()
    outermost_first = sorted(range(tensor.dim()), key=tensor.stride().__getitem__, reverse=True)
    return tensor.permute(outermost_first).reshape(-1)


def extremes_of_all(values: torch.Tensor) -> Extremes:
    """The extremes of a tensor as a whole.

    Args:
        values: floats, in one dimension, not empty.
    """
    if values.is_cpu:
        low, high = torch.aminmax(values)
        ends = low.item(), high.item()
        limit = sentinel_limit(values.dtype)
        if ends[0] > -limit and ends[1] < limit:  # false for NaN, too
            return Extremes(low.float(), high.float(), values.numel(), ends=ends)
    return _of_ordinary(values, [0])


def extremes_of_parts(tensor: torch.Tensor, spec: QuantizationSpec) -> Extremes:
    """The extremes of each part of a tensor that has parameters of its own.

    Args:
        tensor: floats, not empty.
        spec: says what the parts are.

    Raises:
        ValueError: the tensor cannot be parted like this.
    """
    if spec.granularity is Granularity.PER_AXIS:
        assert spec.ch_axis is not None
        if not -tensor.dim() <= spec.ch_axis < tensor.dim():
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} has no axis {spec.ch_axis}")
        axis = spec.ch_axis % tensor.dim()
        others = [dim for dim in range(tensor.dim()) if dim != axis]
        return _of_parts(tensor, others) if others else _of_parts(tensor[:, None], [1])
    if spec.granularity is Granularity.PER_GROUP:
        rows, shape = as_rows(tensor, spec)
        return _of_parts(rows.reshape(*shape, -1), [len(shape)])
    return extremes_of_all(in_memory_order(tensor))


def _of_parts(tensor: torch.Tensor, dims: list[int]) -> Extremes:
    if tensor.is_cpu:
        # torch.aminmax along a dimension takes twenty times as long as these two.
        low, high = tensor.amin(dims), tensor.amax(dims)
        limit = sentinel_limit(tensor.dtype)
        if low.amin().item() > -limit and high.amax().item() < limit:
            return Extremes(low.float(), high.float(), tensor.numel())
    return _of_ordinary(tensor, dims)


def _of_ordinary(tensor: torch.Tensor, dims: list[int]) -> Extremes:
    """The extremes where some values may be no data. Nothing here waits for a device."""
    ordinary = tensor.abs() < sentinel_limit(tensor.dtype)  # false for NaN, too
    low = tensor.masked_fill(~ordinary, math.inf).amin(dims)
    high = tensor.masked_fill(~ordinary, -math.inf).amax(dims)
    counts: list[Any] = [ordinary.sum(), tensor.isnan().sum(), tensor.isinf().sum()]
    count, nan, infinite = map(int, counts) if tensor.is_cpu else counts
    masked = tensor.numel() - count - nan - infinite
    return Extremes(low.float(), high.float(), count, nan, infinite, masked)
