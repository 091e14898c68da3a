"""Products in the form that the runtime's kernels of integers take.

- A transposed weight is stored transposed, so that its DequantizeLinear is next to the product.
- A product of more than two dimensions with a weight becomes a Gemm between two Reshapes of the integers:
  Gemm has a kernel that adds the bias and quantizes the sums by itself.
- Products of floats that share a weight have a copy of its integers each: the runtime takes integers and
  scales into the product's kernel only where nothing else reads them.
- A product of floats with a weight of integers adds its bias, or zeros, in front of a Relu or Clip: the
  runtime does not take the integers where one of these reads the product.
- The mean over an image becomes a GlobalAveragePool.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnxscript import ir

from torchquilt_onnxruntime.graphs import (
    array_of,
    erase,
    graphs_of,
    insert,
    present,
    readers,
    set_type,
    store,
)
from torchquilt_onnxruntime.qdq import dequantize_behind, is_quantize, parameters_of
from torchquilt_onnxruntime.withholding import is_withheld

_PRODUCTS = frozenset({"Gemm", "MatMul"})
_CLAMPS = frozenset({"Clip", "Relu"})


def store_transposed(model: ir.Model) -> None:
    """Store the integers of transposed weights transposed."""
    for graph in graphs_of(model):
        for node in list(graph):
            if node.op_type == "Transpose" and not node.outputs[0].is_graph_output():
                _without_transpose(model, node)
            elif node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0:
                _without_trans_b(model, node)


def _without_transpose(model: ir.Model, transpose: ir.Node) -> None:
    dequantize = dequantize_behind(transpose.inputs[0])
    if dequantize is None:
        return
    told = transpose.attributes.get_ints("perm")
    made = _transposed(model, transpose, dequantize, None if told is None else list(told))
    if made is not None:
        transpose.outputs[0].replace_all_uses_with(made)
        erase(transpose)


def _without_trans_b(model: ir.Model, gemm: ir.Node) -> None:
    """The kernel that multiplies floats with stored integers takes a weight as MatMul does."""
    data, weight = (dequantize_behind(value) for value in gemm.inputs[:2])
    made = None if data is not None or weight is None else _transposed(model, gemm, weight, [1, 0])
    if made is not None:
        gemm.replace_input_with(1, made)
        del gemm.attributes["transB"]


def _transposed(
    model: ir.Model, before: ir.Node, dequantize: ir.Node, order: list[int] | None
) -> ir.Value | None:
    """A weight that is dequantized in another order of dimensions (None: reversed); None if no constant."""
    integers, told = array_of(dequantize.inputs[0]), parameters_of(dequantize)
    if integers is None or told is None or told.zero_point.shape != told.scale.shape:
        return None
    perm = list(reversed(range(integers.ndim))) if order is None else order
    made = list(dequantize.inputs)
    for position, value in enumerate(made):
        array = array_of(value)
        if array is not None and array.ndim == integers.ndim:  # blocks have parameters of as many dimensions
            name = f"{present(value).name}_transposed"
            made[position] = model.graph.initializers.get(name) or store(
                model.graph, name, np.ascontiguousarray(array.transpose(perm))
            )
    attributes: dict[str, Any] = {}
    if told.axis is not None:
        attributes["axis"] = perm.index(told.axis % integers.ndim)
    if told.block_size:
        attributes["block_size"] = told.block_size
    one = insert(before, "DequantizeLinear", made, like=dequantize, attributes=attributes)
    set_type(one.outputs[0], dequantize.outputs[0].dtype)
    one.outputs[0].shape = ir.Shape([integers.shape[axis] for axis in perm])
    return one.outputs[0]


def add_apart(model: ir.Model) -> None:
    """Let no Relu and no Clip read a product of floats with a weight of integers."""
    for graph in graphs_of(model):
        for product in [node for node in graph if node.op_type in _PRODUCTS and not node.domain]:
            data, weight = (dequantize_behind(value) for value in product.inputs[:2])
            integers = None if weight is None or data is not None else array_of(weight.inputs[0])
            if integers is not None and integers.ndim == 2:
                _add_apart(model, product, integers.shape[-1])


def _add_apart(model: ir.Model, product: ir.Node, outputs: int) -> None:
    result, shape = product.outputs[0], product.outputs[0].shape
    if product.op_type == "MatMul" and shape is not None and len(shape) == 2:
        product.op_type = "Gemm"  # to which the runtime adds no bias that another operator adds
    if result.is_graph_output() or not any(one.op_type in _CLAMPS for one in readers(result)):
        return
    bias = product.inputs[2] if len(product.inputs) > 2 else None
    if bias is None:
        bias = store(model.graph, f"{result.name}_zeros", np.zeros(outputs, np.float32))
    sums = insert(product, product.op_type, product.inputs[:2], like=product)
    sums.attributes.update(product.attributes)
    added = insert(product, "Add", [sums.outputs[0], bias], like=product)
    for one in (sums, added):
        one.outputs[0].type, one.outputs[0].shape = result.type, shape
    result.replace_all_uses_with(added.outputs[0])
    erase(product)


def separate_weights(model: ir.Model) -> None:
    """Give products of floats that share a weight a copy of its integers each."""
    for graph in graphs_of(model):
        known: set[ir.Value] = set()
        for product in [node for node in graph if node.op_type in _PRODUCTS and not node.domain]:
            data, weight = (dequantize_behind(value) for value in product.inputs[:2])
            integers = None if weight is None or data is not None else weight.inputs[0]
            if weight is None or integers is None or array_of(integers) is None:
                continue
            if integers in known:
                product.replace_input_with(1, _apart(model, product, weight))
            known.add(integers)


def _apart(model: ir.Model, before: ir.Node, dequantize: ir.Node) -> ir.Value:
    """The same weight, dequantized of constants of its own."""
    copies: list[ir.Value | None] = []
    for value in dequantize.inputs:
        array = array_of(value)
        if value is not None and array is not None:
            value = store(model.graph, f"{value.name}_copy", array, value.dtype)
        copies.append(value)
    made = insert(before, "DequantizeLinear", copies, like=dequantize)
    made.attributes.update(dequantize.attributes)
    set_type(made.outputs[0], dequantize.outputs[0].dtype)
    made.outputs[0].shape = dequantize.outputs[0].shape
    return made.outputs[0]


def is_plain(gemm: ir.Node) -> bool:
    """Whether a Gemm only multiplies, and adds a bias."""
    given = gemm.attributes
    factors = (given.get_float("alpha", 1.0), given.get_float("beta", 1.0))
    return factors == (1.0, 1.0) and not given.get_int("transA", 0)


def write_gemm(model: ir.Model) -> None:
    """Write products of integers with a weight as Gemm."""
    for graph in graphs_of(model):
        for node in list(graph):
            if node.op_type == "MatMul" and not node.domain and not is_withheld(node):
                _write_gemm(model, node)


def _write_gemm(model: ir.Model, product: ir.Node) -> None:
    data, weight = (dequantize_behind(value) for value in product.inputs)
    told = parameters_of(data)
    stored = None if weight is None else array_of(weight.inputs[0])
    shape = None if data is None else present(data.inputs[0]).shape
    if data is None or weight is None or told is None or not told.is_per_tensor:
        return
    own = parameters_of(weight)
    if stored is None or stored.ndim != 2 or shape is None or len(shape) < 3 or own is None or own.block_size:
        return
    last, bias = _with_bias(product)
    inner, outer = stored.shape
    flat = insert(product, "Reshape", [data.inputs[0], _numbers(model, [-1, inner])], like=product)
    flat.outputs[0].dtype, flat.outputs[0].shape = told.dtype, ir.Shape([None, inner])
    floats = insert(product, "DequantizeLinear", [flat.outputs[0], *data.inputs[1:]], like=data)
    floats.outputs[0].dtype, floats.outputs[0].shape = ir.DataType.FLOAT, ir.Shape([None, inner])
    inputs = [floats.outputs[0], product.inputs[1], *([] if bias is None else [bias])]
    gemm = insert(last, "Gemm", inputs, like=product)
    if last is not product:
        gemm.metadata_props.update(last.metadata_props)
    gemm.outputs[0].dtype, gemm.outputs[0].shape = ir.DataType.FLOAT, ir.Shape([None, outer])
    sizes = _sizes(model, last, data.inputs[0], shape, outer)
    result = insert(last, "Reshape", [gemm.outputs[0], sizes], like=last)
    result.outputs[0].dtype, result.outputs[0].shape = ir.DataType.FLOAT, last.outputs[0].shape
    result.outputs[0].name = last.outputs[0].name
    last.outputs[0].replace_all_uses_with(result.outputs[0], replace_graph_outputs=True)
    for node in dict.fromkeys((last, product)):
        erase(node)


def _with_bias(product: ir.Node) -> tuple[ir.Node, ir.Value | None]:
    """The last node of a product and the constant that is added to it; the product itself without one."""
    following = readers(product.outputs[0])
    if len(following) != 1 or following[0].op_type != "Add" or product.outputs[0].is_graph_output():
        return product, None
    (other,) = (value for value in following[0].inputs if value is not product.outputs[0])
    array = array_of(other)
    return (following[0], other) if array is not None and array.ndim == 1 else (product, None)


def _numbers(model: ir.Model, numbers: list[int]) -> ir.Value:
    name = "shape_" + "_".join(map(str, numbers)).replace("-", "m")
    return model.graph.initializers.get(name) or store(model.graph, name, np.array(numbers, np.int64))


def _sizes(model: ir.Model, before: ir.Node, value: Any, shape: ir.Shape, outer: int) -> ir.Value:
    """The shape of a product: as that of its first operand, with another last size."""
    known = [size if isinstance(size, int) else -1 for size in shape[:-1]]
    if known.count(-1) <= 1 and 0 not in known:
        return _numbers(model, [*known, outer])
    sizes = insert(before, "Shape", [value], like=before, attributes={"start": 0, "end": -1})
    joined = insert(
        before, "Concat", [sizes.outputs[0], _numbers(model, [outer])], like=before, attributes={"axis": 0}
    )
    for node in (sizes, joined):
        node.outputs[0].dtype = ir.DataType.INT64
    return joined.outputs[0]


def write_global_pool(model: ir.Model) -> None:
    """Write means over the last two of four dimensions, of integers and to integers, as pooling."""
    for graph in graphs_of(model):
        for node in list(graph):
            value = node.inputs[0] if node.op_type == "ReduceMean" and node.inputs else None
            axes = array_of(node.inputs[1]) if value is not None and len(node.inputs) > 1 else None
            if axes is None or value is None or value.shape is None or len(value.shape) != 4:
                continue
            is_whole = {int(axis) % 4 for axis in axes.reshape(-1)} == {2, 3}
            is_quantized = all(map(is_quantize, readers(node.outputs[0])))
            if is_whole and is_quantized and not is_withheld(node) and dequantize_behind(value) is not None:
                _write_global_pool(model, node)


def _write_global_pool(model: ir.Model, mean: ir.Node) -> None:
    pool = insert(mean, "GlobalAveragePool", mean.inputs[:1], like=mean)
    (batch, channels), result = present(present(mean.inputs[0]).shape)[:2], pool.outputs[0]
    result.dtype, result.shape = ir.DataType.FLOAT, ir.Shape([batch, channels, 1, 1])
    if not mean.attributes.get_int("keepdims", 1):
        axes = store(model.graph, f"{mean.outputs[0].name}_axes", np.array([2, 3], np.int64))
        squeeze = insert(mean, "Squeeze", [result, axes], like=mean)
        result = squeeze.outputs[0]
        result.dtype, result.shape = ir.DataType.FLOAT, mean.outputs[0].shape
    mean.outputs[0].replace_all_uses_with(result)
    erase(mean)
