"""Products whose input is quantized when the program runs, in the operators that ONNX has for them.

``DynamicQuantizeLinear`` finds scale and zero point of a whole tensor as uint8, and quantizes it. Products of
its integers are ``MatMulInteger`` and ``ConvInteger``, whose sums are scaled: that is the form that the
runtime fuses. int8 is written as uint8, whose zero point is 128 higher, which is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnxscript import ir

from torchquilt.backend import arguments_of, chooses_qparams, qdq_of, qdq_operators
from torchquilt_onnxruntime.graphs import array_of, erase, graphs_of, insert, present, readers, store
from torchquilt_onnxruntime.products import is_plain
from torchquilt_onnxruntime.qdq import dequantize_behind, is_dequantize, is_quantize, parameters_of

_FULL = {"uint8": (0, 255), "int8": (-128, 127)}


def write_dynamic(model: ir.Model) -> None:
    """Write dynamic quantization of whole tensors, and the products of its integers."""
    for graph in graphs_of(model):
        for node in list(graph):
            if is_quantize(node) and _is_chosen(node):
                _write_quantize(node)
        for node in list(graph):
            if node.op_type in ("MatMul", "Gemm", "Conv") and not node.domain:
                _write_product(model, node)


def _is_chosen(node: ir.Node) -> bool:
    """Whether scale and zero point of a quantize are chosen at run time, for all integers of 8 bits."""
    source = node.meta.get("node")
    told = None if source is None else qdq_of(source)
    chosen = None if told is None or not hasattr(told.scale, "args") else told.scale.args[0]
    if told is None or chosen is None or not hasattr(chosen, "op") or not chooses_qparams(chosen):
        return False
    is_affine = chosen.target is qdq_operators().choose_qparams.tensor
    limits = _FULL.get(str(told.dtype).removeprefix("torch."))
    value = node.inputs[0]
    return (
        is_affine
        and limits == (told.quant_min, told.quant_max)
        and arguments_of(chosen)["input"] is told.input
        and value is not None
        and value.dtype is ir.DataType.FLOAT
        and not node.outputs[0].is_graph_output()
        and all(map(is_dequantize, readers(node.outputs[0])))
    )


def _write_quantize(quantize: ir.Node) -> None:
    made = insert(quantize, "DynamicQuantizeLinear", quantize.inputs[:1], like=quantize, outputs=3)
    integers, scale, zero_point = made.outputs
    integers.dtype, integers.shape = ir.DataType.UINT8, quantize.outputs[0].shape
    scale.dtype, zero_point.dtype = ir.DataType.FLOAT, ir.DataType.UINT8
    scale.shape = zero_point.shape = ir.Shape([])
    for dequantize in readers(quantize.outputs[0]):
        for position, value in enumerate(made.outputs):
            dequantize.replace_input_with(position, value)
    erase(quantize)


def _write_product(model: ir.Model, node: ir.Node) -> None:
    """Write a product of dynamic integers with a stored weight on the integers."""
    data, weight = (dequantize_behind(value) for value in node.inputs[:2])
    chosen = None if data is None else present(data.inputs[0]).producer()
    told = parameters_of(weight)
    if data is None or weight is None or chosen is None or chosen.op_type != "DynamicQuantizeLinear":
        return
    integers = array_of(weight.inputs[0])
    if told is None or integers is None or told.block_size or integers.dtype.itemsize != 1:
        return
    is_convolution = node.op_type == "Conv"
    transposed = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
    channels = 0 if is_convolution or transposed else integers.ndim - 1
    if not told.is_per_tensor and (told.axis is None or told.axis % integers.ndim != channels):
        return
    if not told.is_per_tensor and told.zero_point.any():
        return
    if node.op_type == "Gemm" and not is_plain(node):
        return
    if not is_convolution and integers.ndim != 2:
        return
    stored = weight.inputs[0]
    if transposed:
        name = f"{present(stored).name}_transposed"
        stored = model.graph.initializers.get(name) or store(
            model.graph, name, np.ascontiguousarray(integers.T)
        )
    _write_on_integers(model, node, chosen, stored, told)


def _write_on_integers(model: ir.Model, node: ir.Node, chosen: ir.Node, stored: Any, told: Any) -> None:
    is_convolution = node.op_type == "Conv"
    base = str(node.outputs[0].name)
    integers, scale, zero_point = chosen.outputs
    inputs = [integers, stored, zero_point]
    if told.zero_point.any():
        point = told.zero_point.reshape(-1)[0].astype(stored.dtype.numpy())
        inputs.append(store(model.graph, f"{base}_zero_point", np.array(point)))
    attributes = dict(node.attributes) if is_convolution else {}
    kind = "ConvInteger" if is_convolution else "MatMulInteger"
    sums = insert(node, kind, inputs, like=node, attributes=attributes)
    shape = node.outputs[0].shape
    ones = (1,) * (len(shape) - 2 if shape is not None else 0) if is_convolution else ()
    factors = told.scale.astype(np.float32)
    factors = factors.reshape(()) if told.is_per_tensor else factors.reshape(-1, *ones)
    factor = insert(node, "Mul", [scale, store(model.graph, f"{base}_scale", factors)], like=node)
    floats = insert(node, "Cast", [sums.outputs[0]], like=node, attributes={"to": ir.DataType.FLOAT})
    result = insert(node, "Mul", [floats.outputs[0], factor.outputs[0]], like=node)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        array = array_of(bias)
        if ones and array is not None:
            bias = store(model.graph, f"{base}_bias", array.reshape(-1, *ones))
        result = insert(node, "Add", [result.outputs[0], bias], like=node)
    sums.outputs[0].dtype = ir.DataType.INT32
    for one in (factor, floats, result):
        one.outputs[0].dtype = ir.DataType.FLOAT
    for one in (sums, floats, result):
        one.outputs[0].shape = shape
    result.outputs[0].name = base
    node.outputs[0].replace_all_uses_with(result.outputs[0], replace_graph_outputs=True)
    erase(node)
