"""Quantized tensors as quantize and dequantize operators describe them: integers, scale, zero point.

A real number is ``(integer - zero_point) * scale``, as in :class:`torchquilt.QuantizationSpec`.
"""

from __future__ import annotations

from typing import TypeAlias

import attrs
import torch
from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers the quantized_decomposed operators)
from torch.fx import Node

from torchquilt.graph.node_values import arguments_of, is_constant, overload_name

_OPS = torch.ops.quantized_decomposed

#: Integer types that the rules compute with. torch has no clamp and no maximum of uint16.
INTEGER_DTYPES = (torch.int8, torch.uint8, torch.int16)


@attrs.frozen
class Grid:
    """The integers that stand for an activation with one scale: ``low`` … ``high``, within ``dtype``."""

    scale: float
    zero_point: int
    low: int
    high: int
    dtype: torch.dtype

    @property
    def parameters(self) -> tuple[float, int, int, int, torch.dtype]:
        """Arguments that follow the tensor in the call of an operator that quantizes."""
        return (self.scale, self.zero_point, self.low, self.high, self.dtype)

    def nearest(self, value: float) -> int:
        """The integer for a real number, computed by the operator that quantizes tensors."""
        return int(_OPS.quantize_per_tensor(torch.tensor(value, dtype=torch.float32), *self.parameters))

    def clamped(self, low: float | None, high: float | None) -> Grid:
        """The part of the grid within two real bounds. Quantizing first and clamping then is the same."""
        return attrs.evolve(
            self,
            low=self.low if low is None else self.nearest(low),
            high=self.high if high is None else self.nearest(high),
        )


@attrs.frozen(eq=False)
class PerTensor:
    """A tensor with one scale, known ahead of time."""

    integers: Node
    grid: Grid

    @property
    def reach(self) -> int:
        """The largest magnitude of an integer less the zero point."""
        return max(self.grid.high - self.grid.zero_point, self.grid.zero_point - self.grid.low)


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
    name = overload_name(node)
    if not name.startswith("quantized_decomposed.dequantize_"):
        return None
    arguments = arguments_of(node)
    if arguments["dtype"] not in INTEGER_DTYPES:
        return None
    if name == "quantized_decomposed.dequantize_per_tensor.default":
        return PerTensor(arguments["input"], _grid(node))
    if name == "quantized_decomposed.dequantize_per_channel.default":
        integers, scale, zero_point = (arguments[key] for key in ("input", "scales", "zero_points"))
        axis = arguments["axis"] % integers.meta["val"].dim()
        if not all(map(is_constant, (integers, scale, zero_point))):
            return None
        return PerAxis(integers, scale, zero_point, axis, arguments["quant_min"], arguments["quant_max"])
    per_token = name == "quantized_decomposed.dequantize_per_token.default"
    if per_token or name == "quantized_decomposed.dequantize_per_tensor.tensor":
        scale = arguments["scales" if per_token else "scale"]
        zero_point = arguments["zero_points" if per_token else "zero_point"]
        if zero_point.meta["val"].is_floating_point():
            return None
        reach = arguments["quant_max"] - arguments["quant_min"]
        return Dynamic(arguments["input"], scale, zero_point, reach, per_token)
    return None


def grid_of(node: Node) -> Grid | None:
    """The grid of a quantize operator, or None: another operator, or a layout that no rule knows."""
    if overload_name(node) != "quantized_decomposed.quantize_per_tensor.default":
        return None
    grid = _grid(node)
    return grid if grid.dtype in INTEGER_DTYPES else None


def _grid(node: Node) -> Grid:
    arguments = arguments_of(node)
    return Grid(*(arguments[key] for key in ("scale", "zero_point", "quant_min", "quant_max", "dtype")))
