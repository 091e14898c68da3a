"""Biases as 32-bit integers, on the scale of the accumulator, where the runtime computes with integers.

The runtime's kernels add a bias to the sums of products of integers. A bias that is stored in float keeps
an operator in float.
"""

from __future__ import annotations

import numpy as np
from onnxscript import ir

from torchquilt_onnxruntime.graphs import array_of, graphs_of, present, readers, store
from torchquilt_onnxruntime.qdq import dequantize_behind, is_quantize, parameters_of

_LIMITS = np.iinfo(np.int32)


def quantize_biases(model: ir.Model) -> None:
    """Store the float biases of operators that read integers as integers."""
    for graph in graphs_of(model):
        for node in list(graph):
            axis = _channels(node)
            if axis is not None and len(node.inputs) > 2 and _is_fused(node):
                _quantize_bias(model, node, axis)


def _channels(node: ir.Node) -> int | None:
    """The axis of the output channels in the weight of a convolution or product."""
    if node.domain:
        return None
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm" and node.attributes.get_float("alpha", 1.0) == 1.0:
        return 0 if node.attributes.get_int("transB", 0) else 1
    return None


def _is_fused(node: ir.Node) -> bool:
    """Whether the runtime has a kernel of integers for it: a convolution has to return integers."""
    return node.op_type == "Gemm" or any(map(is_quantize, readers(node.outputs[0])))


def _quantize_bias(model: ir.Model, node: ir.Node, axis: int) -> None:
    bias = array_of(node.inputs[2])
    data, weight = (parameters_of(dequantize_behind(node.inputs[position])) for position in (0, 1))
    if bias is None or bias.ndim != 1 or data is None or weight is None or not data.is_per_tensor:
        return
    if not weight.is_per_tensor and (weight.axis != axis or weight.block_size):
        return
    scale = data.scale.reshape(-1).astype(np.float64) * weight.scale.reshape(-1).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        integers = np.rint(bias.astype(np.float64) / scale)
    stored = scale.astype(np.float32)
    if not np.isfinite(integers).all() or np.abs(integers).max(initial=0) > _LIMITS.max or not stored.all():
        return
    name = str(present(node.inputs[2]).name)
    values = store(model.graph, f"{name}_int32", integers.astype(np.int32))
    scales = store(model.graph, f"{name}_scale", stored if stored.size > 1 else stored.reshape(()))
    made = ir.Node("", "DequantizeLinear", [values, scales], metadata_props=dict(node.metadata_props))
    if stored.size > 1:
        made.attributes["axis"] = ir.AttrInt64("axis", 0)
    made.outputs[0].dtype, made.outputs[0].shape = ir.DataType.FLOAT, ir.Shape(bias.shape)
    present(node.graph).insert_before(node, made)
    node.replace_input_with(2, made.outputs[0])
