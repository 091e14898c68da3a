"""From the range of a tensor to scale and zero point; which elements share them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from torchquilt.spec.qspec import Granularity, QuantizationSpec, ZeroPointDomain


class QParams(NamedTuple):
    """Scale and zero point of a tensor: ``x ≈ (q - zero_point) * scale``.

    Args:
        scale: float32. Shape ``()`` for per tensor, ``(C,)`` for per axis, ``(..., groups)`` for per group.
        zero_point: int64 (float32 for specs with a float zero point), of the same shape.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor


def as_rows(tensor: torch.Tensor, spec: QuantizationSpec) -> tuple[torch.Tensor, tuple[int, ...]]:
    """A tensor as a matrix with one row for each set of parameters, and the shape of the parameters.

    Raises:
        ValueError: the tensor has no such axis, or it is no matrix whose rows divide into groups.
    """
    if spec.granularity is Granularity.PER_AXIS:
        assert spec.ch_axis is not None
        if not -tensor.dim() <= spec.ch_axis < tensor.dim():
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} has no axis {spec.ch_axis}")
        rows = tensor.movedim(spec.ch_axis, 0)
        return rows.reshape(rows.shape[0], math.prod(rows.shape[1:])), (rows.shape[0],)
    if spec.granularity is Granularity.PER_GROUP:
        assert spec.group_size is not None
        if tensor.dim() != 2 or tensor.shape[-1] % spec.group_size:
            raise ValueError(
                f"shape {tuple(tensor.shape)} is no matrix whose rows divide into groups of {spec.group_size}"
            )
        groups = tensor.shape[-1] // spec.group_size
        return tensor.reshape(-1, spec.group_size), (*tensor.shape[:-1], groups)
    return tensor.reshape(1, -1), ()


def qparams_of_range(low: torch.Tensor, high: torch.Tensor, spec: QuantizationSpec) -> QParams:
    """The parameters with which ``low`` … ``high`` just fits into the quantized range.

    The formulas are those of ``torch.ao.quantization``'s observers, in float32, so that parameters
    agree with theirs bit for bit. The range is widened to hold 0.0, which therefore is represented
    exactly, except with a float zero point, where the range is taken as it is. (One case differs: for a
    narrow range with a float zero point they take a scale of 1.0, which rounds all of it away.)

    Args:
        low: smallest value, a finite float tensor.
        high: largest value, a tensor of the same shape, nowhere below ``low``.
        spec: what is wanted; its granularity is not looked at.

    Returns:
        QParams of that shape, with ``scale >= spec.eps``.
    """
    low, high = low.float(), high.float()
    steps = float(spec.quant_max - spec.quant_min)
    eps = torch.tensor(spec.eps, dtype=torch.float32, device=low.device)
    if spec.zero_point_domain is ZeroPointDomain.FLOAT:
        scale = torch.maximum((high - low) / steps, eps)
        return QParams(scale, spec.quant_min - low / scale)
    low, high = low.clamp(max=0), high.clamp(min=0)
    if spec.symmetric:
        assert spec.zero_point is not None
        scale = torch.maximum(torch.maximum(-low, high) / (steps / 2), eps)
        return QParams(scale, torch.full_like(scale, spec.zero_point, dtype=torch.int64))
    scale = torch.maximum((high - low) / steps, eps)
    zero_point = spec.quant_min - torch.round(low / scale).to(torch.int64)
    return QParams(scale, zero_point.clamp(spec.quant_min, spec.quant_max))


def raised_to(found: QParams, least: torch.Tensor, spec: QuantizationSpec) -> QParams:
    """Parameters whose scale is nowhere smaller than ``least``, and that begin where the range began.

    Args:
        found: the parameters as they are, with an integer zero point.
        least: the smallest scale, of the shape of the scale or a number.
        spec: what they are for.
    """
    scale = torch.maximum(found.scale, _not_below(least).to(found.scale.device))
    if spec.symmetric:
        return QParams(scale, found.zero_point)
    steps = (spec.quant_min - found.zero_point) * (found.scale.double() / scale.double())
    zero_point = spec.quant_min - torch.round(steps).to(torch.int64)
    return QParams(scale, zero_point.clamp(spec.quant_min, spec.quant_max))


def _not_below(least: torch.Tensor) -> torch.Tensor:
    """The nearest float32 that is not smaller."""
    rounded = least.float()
    return torch.where(
        rounded.double() < least, torch.nextafter(rounded, torch.full_like(rounded, math.inf)), rounded
    )
