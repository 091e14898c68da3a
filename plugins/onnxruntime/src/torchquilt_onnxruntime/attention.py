"""Attention as ONNX, as torch computes it: a row whose keys are all masked is zero.

torch's own translation masks with the smallest finite number, so that such a row becomes the mean of all.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnxscript import ir
from onnxscript.onnx_opset import opset21

# Its types speak of Python values, and a function that is traced is given values of the graph.
op: Any = opset21


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Write ``aten.scaled_dot_product_attention`` of a model for inference, which has no dropout."""
    if enable_gqa:
        key, value = (_repeated(one, int(query.shape[1])) for one in (key, value))
    rank, dtype = len(query.shape), query.dtype
    factor = scale if scale is not None else 1.0 / math.sqrt(int(query.shape[-1]))
    turned = op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = op.MatMul(op.Mul(query, _number(factor, dtype)), turned)
    if is_causal:
        scores = op.Where(_causal(query, key), scores, _number(-math.inf, dtype))
    if attn_mask is None:
        return op.MatMul(op.Softmax(scores, axis=-1), value)
    if attn_mask.dtype is ir.DataType.BOOL:
        scores = op.Where(attn_mask, scores, _number(-math.inf, dtype))
    else:
        scores = op.Add(scores, attn_mask)
    largest = op.ReduceMax(scores, op.Constant(value_ints=[-1]), keepdims=1)
    is_masked = op.Equal(largest, _number(-math.inf, dtype))
    weights = op.Where(is_masked, _number(0.0, dtype), op.Softmax(scores, axis=-1))
    return op.MatMul(weights, value)


def _number(value: float, dtype: ir.DataType) -> Any:
    return op.Constant(value=ir.Tensor(np.array(value, dtype.numpy()), dtype=dtype))


def _causal(query: Any, key: Any) -> Any:
    """True where a query may see a key: up to its own position."""
    zero, one = (op.Constant(value=ir.tensor(np.array(value, np.int64))) for value in (0, 1))
    queries, keys = (
        op.Range(zero, op.Squeeze(op.Shape(tensor, start=-2, end=-1)), one) for tensor in (query, key)
    )
    return op.LessOrEqual(keys, op.Unsqueeze(queries, op.Constant(value_ints=[1])))


def _repeated(tensor: Any, heads: int) -> Any:
    """Keys or values with as many heads as there are queries, each several times."""
    own, size = int(tensor.shape[1]), int(tensor.shape[-1])
    if own == heads:
        return tensor
    wide = op.Unsqueeze(tensor, op.Constant(value_ints=[2]))
    sizes = op.Constant(value_ints=[1, 1, heads // own, 1, 1])
    return op.Reshape(op.Expand(wide, sizes), op.Constant(value_ints=[0, heads, -1, size]))
