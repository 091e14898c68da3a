"""Operators that quantize and dequantize, as standard ONNX operators of opset 21.

Each function writes one operator of ``quantized_decomposed`` as torch computes it. Integers outside of the
range that is used are cut off by a Clip of integers behind QuantizeLinear, which is exact. Zero points that
are floating-point numbers, which ONNX has not, are subtracted from the integers before they are scaled.

And two operators that torch's own translations write so that the runtime refuses them, or otherwise than
torch computes them: attention, and ``squeeze`` of dimensions that have more than one element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnxscript import ir
from onnxscript.onnx_opset import opset21

from torchquilt.backend import qdq_operators
from torchquilt_onnxruntime.attention import attention

OPSET = 21
# Its types speak of Python values, and a function that is traced is given values of the graph.
op: Any = opset21
_FLOAT = ir.DataType.FLOAT
#: torch chooses no smaller scale for a token.
_LEAST_TOKEN_SCALE = 2.0**-23


def table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Each operator with the function that writes it, as ``torch.onnx.export`` takes them."""
    import torch

    ops = qdq_operators()
    return {
        torch.ops.aten.scaled_dot_product_attention.default: attention,
        torch.ops.aten.squeeze.dim: _squeeze,
        torch.ops.aten.squeeze.dims: _squeeze,
        ops.quantize_per_tensor.default: _quantize_per_tensor,
        ops.quantize_per_tensor.tensor: _quantize_per_tensor,
        ops.dequantize_per_tensor.default: _dequantize_per_tensor,
        ops.dequantize_per_tensor.tensor: _dequantize_per_tensor,
        ops.quantize_per_channel.default: _quantize_per_channel,
        ops.dequantize_per_channel.default: _dequantize_per_channel,
        ops.quantize_per_channel_group.default: _quantize_per_group,
        ops.dequantize_per_channel_group.default: _dequantize_per_group,
        ops.quantize_per_token.default: _quantize_per_token,
        ops.dequantize_per_token.default: _dequantize_per_token,
        ops.choose_qparams.tensor: _choose_qparams,
        ops.choose_qparams_symmetric.tensor: _choose_qparams_symmetric,
        ops.choose_qparams_per_token_asymmetric.default: _choose_qparams_per_token,
    }


def _squeeze(tensor: Any, dim: int | Sequence[int]) -> Any:
    """Leave out those of some dimensions that have one element; the others stay."""
    sizes = tensor.shape
    axes = {axis % max(len(sizes), 1) for axis in ([dim] if isinstance(dim, int) else dim)}
    left_out = sorted(axis for axis in axes if axis < len(sizes) and sizes[axis] == 1)
    return op.Squeeze(tensor, op.Constant(value_ints=left_out)) if left_out else op.Identity(tensor)


def _constant(value: Any, dtype: int) -> Any:
    array = np.asarray(value, dtype=ir.DataType(dtype).numpy())
    return op.Constant(value=ir.tensor(array))


def _as_scale(scale: Any) -> Any:
    """A scale as float32, in which it is stored."""
    return _constant(scale, _FLOAT) if isinstance(scale, (int, float)) else op.Cast(scale, to=_FLOAT)


def _as_zero_point(zero_point: Any, dtype: int) -> Any:
    return _constant(zero_point, dtype) if isinstance(zero_point, int) else op.Cast(zero_point, to=dtype)


def _in_range(integers: Any, quant_min: int, quant_max: int, dtype: int) -> Any:
    """Cut off the integers outside of the range, where that is not the range of their dtype."""
    limits = np.iinfo(ir.DataType(dtype).numpy())
    if (quant_min, quant_max) == (limits.min, limits.max):
        return integers
    if ir.DataType(dtype).itemsize == 1:
        return op.Clip(integers, _constant(quant_min, dtype), _constant(quant_max, dtype))
    # There is no kernel that cuts off 16-bit integers.
    wide = op.Cast(integers, to=ir.DataType.INT32)
    low, high = (_constant(value, ir.DataType.INT32) for value in (quant_min, quant_max))
    return op.Cast(op.Clip(wide, low, high), to=dtype)


def _as_float(tensor: Any) -> Any:
    return tensor if getattr(tensor, "dtype", None) is _FLOAT else op.Cast(tensor, to=_FLOAT)


def _as_dtype(floats: Any, dtype: int | None) -> Any:
    return floats if dtype in (None, -1, _FLOAT) else op.Cast(floats, to=dtype)


def _scalar(value: Any) -> Any:
    """A parameter of the whole tensor without dimensions; torch chooses tensors of one element."""
    if isinstance(value, (int, float)):
        return value
    return op.Reshape(value, op.Constant(value=ir.tensor(np.array([], dtype=np.int64))))


def _quantize_per_tensor(
    tensor: Any, scale: Any, zero_point: Any, quant_min: int, quant_max: int, dtype: int
) -> Any:
    scale, zero_point = _as_scale(_scalar(scale)), _as_zero_point(_scalar(zero_point), dtype)
    return _in_range(op.QuantizeLinear(_as_float(tensor), scale, zero_point), quant_min, quant_max, dtype)


def _dequantize_per_tensor(
    tensor: Any,
    scale: Any,
    zero_point: Any,
    quant_min: int,
    quant_max: int,
    dtype: int,
    out_dtype: int | None = None,
) -> Any:
    scale, zero_point = _as_scale(_scalar(scale)), _as_zero_point(_scalar(zero_point), dtype)
    return _as_dtype(op.DequantizeLinear(tensor, scale, zero_point), out_dtype)


def _quantize_per_channel(
    tensor: Any, scales: Any, zero_points: Any, axis: int, quant_min: int, quant_max: int, dtype: int
) -> Any:
    scales, zero_points = _as_scale(scales), _as_zero_point(zero_points, dtype)
    integers = op.QuantizeLinear(_as_float(tensor), scales, zero_points, axis=axis)
    return _in_range(integers, quant_min, quant_max, dtype)


def _is_float(value: Any) -> bool:
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()


def _dequantize_per_channel(
    tensor: Any,
    scales: Any,
    zero_points: Any,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: int,
    out_dtype: int | None = None,
) -> Any:
    scales = _as_scale(scales)
    if _is_float(zero_points):
        axes = op.Constant(value_ints=[number for number in range(len(tensor.shape)) if number != axis])
        offsets = op.Unsqueeze(_as_float(zero_points), axes)
        return _as_dtype(op.Mul(op.Sub(_as_float(tensor), offsets), op.Unsqueeze(scales, axes)), out_dtype)
    parameters = [scales] if zero_points is None else [scales, _as_zero_point(zero_points, dtype)]
    return _as_dtype(op.DequantizeLinear(tensor, *parameters, axis=axis), out_dtype)


def _quantize_per_group(
    tensor: Any,
    scales: Any,
    zero_points: Any,
    quant_min: int,
    quant_max: int,
    dtype: int,
    group_size: int = 128,
) -> Any:
    scales, zero_points = _as_scale(scales), _as_zero_point(zero_points, dtype)
    integers = op.QuantizeLinear(
        _as_float(tensor), scales, zero_points, axis=-1, block_size=_group_size(tensor, group_size)
    )
    return _in_range(integers, quant_min, quant_max, dtype)


def _group_size(tensor: Any, group_size: int) -> int:
    # torch, too, takes a group that is longer than a row for the row.
    return min(group_size, int(tensor.shape[-1]))


def _dequantize_per_group(
    tensor: Any,
    scales: Any,
    zero_points: Any,
    quant_min: int,
    quant_max: int,
    dtype: int,
    group_size: int = 128,
    output_dtype: int = _FLOAT,
) -> Any:
    (rows, groups), size = (int(one) for one in scales.shape), _group_size(tensor, group_size)
    scales = _as_scale(scales)
    if _is_float(zero_points):
        grouped = _as_float(op.Reshape(tensor, op.Constant(value_ints=[rows, groups, size])))
        axes = op.Constant(value_ints=[2])
        offsets = op.Unsqueeze(_as_float(zero_points), axes)
        scaled = op.Mul(op.Sub(grouped, offsets), op.Unsqueeze(scales, axes))
        return _as_dtype(op.Reshape(scaled, op.Constant(value_ints=[rows, groups * size])), output_dtype)
    parameters = [scales] if zero_points is None else [scales, _as_zero_point(zero_points, dtype)]
    return _as_dtype(op.DequantizeLinear(tensor, *parameters, axis=-1, block_size=size), output_dtype)


def _quantize_per_token(
    tensor: Any, scales: Any, zero_points: Any, quant_min: int, quant_max: int, dtype: int
) -> Any:
    # torch adds the zero point before it rounds, where QuantizeLinear does so behind: halves differ.
    scaled = op.Mul(_as_float(tensor), op.Div(_constant(1.0, _FLOAT), _as_scale(scales)))
    rounded = op.Round(op.Add(scaled, _as_float(zero_points)))
    low, high = (_constant(value, _FLOAT) for value in (quant_min, quant_max))
    return op.Cast(op.Clip(rounded, low, high), to=dtype)


def _dequantize_per_token(
    tensor: Any,
    scales: Any,
    zero_points: Any,
    quant_min: int,
    quant_max: int,
    dtype: int,
    output_dtype: int = _FLOAT,
) -> Any:
    moved = op.Sub(_as_float(tensor), _as_float(zero_points))
    return _as_dtype(op.Mul(moved, _as_scale(scales)), output_dtype)


def _extremes(tensor: Any, axes: Any = None) -> tuple[Any, Any]:
    """The smallest and the largest element, and 0 if it lies outside of them."""
    zero, floats = _constant(0.0, _FLOAT), _as_float(tensor)
    if axes is None:
        low, high = op.ReduceMin(floats, keepdims=0), op.ReduceMax(floats, keepdims=0)
    else:
        low, high = op.ReduceMin(floats, axes, keepdims=1), op.ReduceMax(floats, axes, keepdims=1)
    return op.Min(low, zero), op.Max(high, zero)


def _choose_qparams(tensor: Any, quant_min: int, quant_max: int, eps: float, dtype: int) -> Any:
    low, high = _extremes(tensor)
    scale = op.Div(op.Sub(high, low), _constant(quant_max - quant_min, _FLOAT))
    scale = op.Max(scale, _constant(eps, _FLOAT))
    moved = op.Sub(_constant(quant_min, _FLOAT), op.Round(op.Div(low, scale)))
    zero_point = op.Clip(moved, _constant(quant_min, _FLOAT), _constant(quant_max, _FLOAT))
    return scale, op.Cast(zero_point, to=ir.DataType.INT64)


def _choose_qparams_symmetric(tensor: Any, quant_min: int, quant_max: int, eps: float, dtype: int) -> Any:
    low, high = _extremes(tensor)
    half = _constant((quant_max - quant_min) / 2, _FLOAT)
    scale = op.Max(op.Div(op.Max(op.Neg(low), high), half), _constant(eps, _FLOAT))
    # For unsigned integers torch takes the middle of all integers of the dtype.
    middle = 128 if ir.DataType(dtype) is ir.DataType.UINT8 else 0
    return scale, _constant(middle, ir.DataType.INT64)


def _choose_qparams_per_token(tensor: Any, dtype: int) -> Any:
    low, high = _extremes(tensor, op.Constant(value_ints=[-1]))
    least, most = -128.0, 127.0
    scale = op.Max(
        op.Div(op.Sub(high, low), _constant(most - least, _FLOAT)), _constant(_LEAST_TOKEN_SCALE, _FLOAT)
    )
    below, above = op.Div(low, scale), op.Div(high, scale)
    from_low = op.Sub(_constant(least, _FLOAT), below)
    from_high = op.Sub(_constant(most, _FLOAT), above)
    error = op.Add(op.Add(_constant(least, _FLOAT), below), op.Add(_constant(most, _FLOAT), above))
    chosen = op.Where(op.Greater(error, _constant(0.0, _FLOAT)), from_low, from_high)
    clipped = op.Clip(chosen, _constant(least, _FLOAT), _constant(most, _FLOAT))
    return scale, op.Cast(op.Round(clipped), to=ir.DataType.INT64)
