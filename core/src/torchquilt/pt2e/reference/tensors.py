"""Quantized tensors as quantize and dequantize operators describe them: integers, scale, zero point.

A real number is ``(integer - zero_point) * scale``, as in :class:`torchquilt.QuantizationSpec`.
"""

from __future__ import annotations

from typing import TypeAlias

import attrs
import torch
from torch.fx import Node

from torchquilt.graph.node_values import is_constant
from torchquilt.graph.qdq import QDQ, QDQOperators, dequantize_of, quantize_of
from torchquilt.spec.qspec import Granularity

#: Integer types that the rules compute with. torch has no clamp and no maximum of uint16.
INTEGER_DTYPES = (torch.int8, torch.uint8, torch.int16)


@attrs.frozen
class ActivationQParams:
    """Quantization parameters of an activation with one scale: integers ``low`` … ``high`` of ``dtype``."""

    scale: float
    zero_point: int
    low: int
    high: int
    dtype: torch.dtype

    @property
    def operators(self) -> QDQOperators:
        """The operators that quantize and dequantize a tensor of it."""
        integers = (self.low, self.high, self.dtype)
        return QDQOperators.of(Granularity.PER_TENSOR, (self.scale, self.zero_point), integers)

    def nearest(self, value: float) -> int:
        """The integer for a real number, computed by the operator that quantizes tensors."""
        operators = self.operators
        return int(operators.quantize(torch.tensor(value, dtype=torch.float32), *operators.arguments))

    def clamped(self, low: float | None, high: float | None) -> ActivationQParams:
        """The part of the integers within two real bounds. Quantizing first and clamping then is the same."""
        return attrs.evolve(
            self,
            low=self.low if low is None else self.nearest(low),
            high=self.high if high is None else self.nearest(high),
        )


@attrs.frozen(eq=False)
class PerTensor:
    """A tensor with one fixed scale."""

    integers: Node
    qparams: ActivationQParams

    @property
    def reach(self) -> int:
        """The largest magnitude of an integer less the zero point."""
        return max(self.qparams.high - self.qparams.zero_point, self.qparams.zero_point - self.qparams.low)


@attrs.frozen(eq=False)
class PerAxis:
    """A constant of integers ``low`` … ``high`` with a scale for each index of ``axis``.

    The zero points may be floats.
    """

    integers: Node
    scale: Node
    zero_point: Node
    axis: int
    low: int
    high: int


@attrs.frozen(eq=False)
class Dynamic:
    """An activation whose parameters are computed from it, for each row (token) or for all of it.

    ``scale`` has a last dimension of size 1 to be broadcast along the row; its dtype is float64 and that of
    ``zero_point`` int64, as torch's operators return them.
    """

    integers: Node
    scale: Node
    zero_point: Node
    reach: int
    per_token: bool


Quantized: TypeAlias = PerTensor | PerAxis | Dynamic


def dequantized(node: Node) -> Quantized | None:
    """Tensor that a dequantize operator reads; None for another operator, or a layout that no rule knows."""
    told = dequantize_of(node)
    if told is None or told.dtype not in INTEGER_DTYPES:
        return None
    if told.has_one_scale:
        return PerTensor(told.input, _qparams(told))
    if told.granularity is Granularity.PER_AXIS:
        assert told.axis is not None
        axis = told.axis % told.input.meta["val"].dim()
        if not all(map(is_constant, (told.input, told.scale, told.zero_point))):
            return None
        return PerAxis(told.input, told.scale, told.zero_point, axis, told.quant_min, told.quant_max)
    is_for_groups = told.granularity is Granularity.PER_GROUP
    if is_for_groups or told.zero_point.meta["val"].is_floating_point():
        return None
    reach = told.quant_max - told.quant_min
    per_token = told.granularity is Granularity.PER_TOKEN
    return Dynamic(told.input, told.scale, told.zero_point, reach, per_token)


def qparams_of(node: Node) -> ActivationQParams | None:
    """The parameters of a quantize operator, or None: another operator, or a layout that no rule knows."""
    told = quantize_of(node)
    is_known = told is not None and told.has_one_scale and told.dtype in INTEGER_DTYPES
    return _qparams(told) if told is not None and is_known else None


def _qparams(told: QDQ) -> ActivationQParams:
    return ActivationQParams(told.scale, told.zero_point, told.quant_min, told.quant_max, told.dtype)
