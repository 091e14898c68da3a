"""Addition and multiplication of two activations."""

from __future__ import annotations

import math

import torch
from torch.fx import Node

from torchquilt.pt2e.reference.arithmetic import accumulator, centred, float32, requantized, shifted
from torchquilt.pt2e.reference.sites import Site, check_sources
from torchquilt.pt2e.reference.tensors import ActivationQParams
from torchquilt.pt2e.reference.writer import Writer
from torchquilt.support.pattern import Reject

_ATEN = torch.ops.aten

# XNNPACK's fixed point for additions (``qs8-vadd``): the larger one of the two factors has this many bits
# behind its leading one, and what the sum of the products is shifted by follows from it.
_FACTOR_BITS = 20
_SHIFTS = range(1, 31)


def check_add(site: Site) -> Reject | None:
    """Whether both operands are quantized, and a shift within int32 brings them to the output's steps."""
    anchor = site.anchor
    rejected = check_sources(site)
    if rejected is not None:
        return rejected
    if site.arguments["alpha"] != 1:
        return Reject("alpha", (anchor,), f"{anchor.name} multiplies one of its operands")
    for qparams in map(site.qparams, site.outputs):
        if qparams is not None and _shift(*_ratios(site, qparams)) not in _SHIFTS:
            text = f"the scales of {anchor.name}'s inputs and output are too far apart for a fixed point"
            return Reject("scales", (anchor,), text)
    return None


def added(site: Site, write: Writer, qparams: ActivationQParams) -> Node:
    """A sum in fixed point: ``(a * factor_a + b * factor_b + rounding) >> shift``.

    With 8 bits everything stays within int32, since a factor is at most 2**21.
    """
    first, second = site.sources
    ratios = _ratios(site, qparams)
    shift = _shift(*ratios)
    factors = [round(math.ldexp(ratio, shift)) for ratio in ratios]  # half to even
    rounding = 1 << (shift - 1)
    reaches = (first.reach, second.reach)
    largest = rounding + sum(factor * reach for factor, reach in zip(factors, reaches, strict=True))
    dtype = accumulator(largest)
    a, b = (
        write(_ATEN.mul.Tensor, centred(write, tensor, dtype), factor)
        for tensor, factor in zip((first, second), factors, strict=True)
    )
    total = write(_ATEN.add.Tensor, write(_ATEN.add.Tensor, a, b), rounding)
    steps = write(_ATEN.bitwise_right_shift.Tensor_Scalar, total, shift)
    steps = write(
        _ATEN.clamp.default, steps, qparams.low - qparams.zero_point, qparams.high - qparams.zero_point
    )
    return shifted(write, steps, qparams)


def _ratios(site: Site, qparams: ActivationQParams) -> tuple[float, float]:
    """The steps of both operands in steps of the output, float32 numbers."""
    first, second = site.sources
    a, b, step = float32(first.qparams.scale, second.qparams.scale, qparams.scale)
    return float(a / step), float(b / step)


def _shift(*ratios: float) -> int:
    """By how many bits the sum is shifted: 20 less the exponent of the larger ratio."""
    _, exponent = math.frexp(max(ratios))  # a mantissa from 0.5 up to 1
    return _FACTOR_BITS - (exponent - 1)


def multiplied(site: Site, write: Writer, qparams: ActivationQParams) -> Node:
    """A product of integers, requantized."""
    first, second = site.sources
    dtype = accumulator(first.reach * second.reach)
    product = write(_ATEN.mul.Tensor, centred(write, first, dtype), centred(write, second, dtype))
    a, b, step = float32(first.qparams.scale, second.qparams.scale, qparams.scale)
    return requantized(write, product, a * b / step, qparams)
