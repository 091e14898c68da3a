"""Arithmetic that the rules share: take the zero point off, and requantize to the output.

Sums and products are integers. Between them and the output stands one multiplication in float32, the
"fp32" requantization of XNNPACK's 8-bit kernels: the accumulator times ``input scale * weight scale /
output scale``, cut off at the smallest and largest integer, rounded half to even, plus the zero point.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from torchquilt.pt2e.reference.tensors import ActivationQParams, Dynamic, PerTensor
from torchquilt.pt2e.reference.writer import Writer

_ATEN = torch.ops.aten


def accumulator(largest: float) -> torch.dtype:
    """The type of a sum whose magnitude is at most ``largest``: int32, as in hardware, where it holds it."""
    return torch.int32 if largest < 2**31 else torch.int64


def float32(*numbers: float) -> tuple[torch.Tensor, ...]:
    """Numbers as float32, in which XNNPACK computes with scales, too."""
    return tuple(torch.tensor(number, dtype=torch.float32) for number in numbers)


def centred(write: Writer, tensor: PerTensor | Dynamic, dtype: torch.dtype) -> Node:
    """The integers of a tensor less its zero point."""
    integers = write.cast(tensor.integers, dtype)
    if isinstance(tensor, Dynamic):
        return write(_ATEN.sub.Tensor, integers, write.cast(tensor.zero_point, dtype))
    zero_point = tensor.qparams.zero_point
    return write(_ATEN.sub.Tensor, integers, zero_point) if zero_point else integers


def scaled(write: Writer, integers: Node, scale: torch.Tensor, name: str = "") -> Node:
    """Integers times a float32 constant, which is stored under ``name`` unless it is one number."""
    values = write.cast(integers, torch.float32)
    factor = write.stored(scale, name) if scale.dim() else float(scale)
    return write(_ATEN.mul.Tensor, values, factor)


def scaled_by_each(write: Writer, integers: Node, scale: Node) -> Node:
    """Integers times a scale that the graph computes, in float32."""
    values = write.cast(integers, torch.float32)
    return write(_ATEN.mul.Tensor, values, write.cast(scale, torch.float32))


def requantized(
    write: Writer, integers: Node, scale: torch.Tensor, qparams: ActivationQParams, name: str = ""
) -> Node:
    """An accumulator as the integers of an output.

    Args:
        write: writes the operators.
        integers: the accumulator, whose zero is that of the real numbers.
        scale: float32, one step of the accumulator in steps of the output; it is broadcast.
        qparams: those of the output.
        name: under which the scale is stored where it is more than one number.
    """
    values = scaled(write, integers, scale, name)
    # Cut off before the cast, which is not defined for numbers that int32 does not hold.
    values = write(
        _ATEN.clamp.default, values, qparams.low - qparams.zero_point, qparams.high - qparams.zero_point
    )
    return shifted(write, write.cast(write(_ATEN.round.default, values), torch.int32), qparams)


def shifted(write: Writer, integers: Node, qparams: ActivationQParams) -> Node:
    """Integers less the zero point of an output, with it, in the dtype of the output."""
    if qparams.zero_point:
        integers = write(_ATEN.add.Tensor, integers, qparams.zero_point)
    return write.cast(integers, qparams.dtype)


def rescaled(write: Writer, tensor: PerTensor, qparams: ActivationQParams) -> Node:
    """A tensor with other parameters; nothing is written where they are the same."""
    source, integers = tensor.qparams, tensor.integers
    if (source.scale, source.zero_point) != (qparams.scale, qparams.zero_point):
        step, other = float32(source.scale, qparams.scale)
        return requantized(write, centred(write, tensor, torch.int32), step / other, qparams)
    if source.low < qparams.low or source.high > qparams.high:
        if source.dtype is not qparams.dtype:
            integers = write.cast(integers, torch.int32)  # which holds the bounds as well
        integers = write(_ATEN.clamp.default, integers, qparams.low, qparams.high)
    return write.cast(integers, qparams.dtype)
