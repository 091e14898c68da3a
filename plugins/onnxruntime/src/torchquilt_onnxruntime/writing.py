"""Steps from torch's ONNX to the file: constants are stored, weights as integers, and nodes get their names.

Each step changes the model. The order is that of :func:`write`.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
from onnxscript import ir

from torchquilt_onnxruntime.biases import quantize_biases
from torchquilt_onnxruntime.dynamic import write_dynamic
from torchquilt_onnxruntime.embeddings import look_up_integers
from torchquilt_onnxruntime.exporting import KIND, SOURCE
from torchquilt_onnxruntime.graphs import array_of, graphs_of, insert, readers, store
from torchquilt_onnxruntime.movement import move_quantizes
from torchquilt_onnxruntime.products import (
    add_apart,
    separate_weights,
    store_transposed,
    write_gemm,
    write_global_pool,
)
from torchquilt_onnxruntime.qdq import dequantize_behind
from torchquilt_onnxruntime.strides import drop_changes_of_strides
from torchquilt_onnxruntime.sums import write_sums
from torchquilt_onnxruntime.unsigned import write_unsigned
from torchquilt_onnxruntime.withholding import withhold

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

#: The smallest and the largest integer of 4 bits, and their dtype.
_FOUR_BITS = {ir.DataType.INT8: (-8, 7, ir.DataType.INT4), ir.DataType.UINT8: (0, 15, ir.DataType.UINT4)}


def write(model: ir.Model, withheld: Collection[str] = ()) -> None:
    """Bring a model that torch wrote into the form of the file.

    Args:
        model: it is changed.
        withheld: nodes of the exported program that are left in float.
    """
    from onnx_ir.passes import common

    common.InlinePass()(model)
    _clear_chosen_types(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    fold_constants(model)
    common.RemoveUnusedNodesPass()(model)
    if withheld:
        withhold(model, withheld)
    look_up_integers(model)
    store_transposed(model)
    write_dynamic(model)
    drop_changes_of_strides(model)
    write_global_pool(model)
    write_gemm(model)
    move_quantizes(model)
    write_unsigned(model)
    quantize_biases(model)
    pack_four_bits(model)
    add_apart(model)
    separate_weights(model)
    write_sums(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(model)
    common.OutputFixPass()(model)
    name_nodes(model)


def _clear_chosen_types(model: ir.Model) -> None:
    """Forget the types of scales that are chosen at run time: torch says float64, and float32 are written."""
    for graph in graphs_of(model):
        for node in graph:
            source = node.meta.get("node")
            if source is None or node.metadata_props.get(KIND) != "conversion":
                continue
            for value in node.outputs:
                if value.dtype is ir.DataType.DOUBLE:
                    value.type = None
                    value.shape = None


# ----------------------------------------------------------------------------------------------------------
# Constants
# ----------------------------------------------------------------------------------------------------------


def fold_constants(model: ir.Model) -> None:
    """Compute beforehand casts and shapes of constants, and the integers of weights."""
    for graph in graphs_of(model):
        for node in list(graph):
            fold = _FOLDED.get(node.op_type) if not node.domain else None
            inputs = [array_of(value) for value in node.inputs]
            if node.op_type == "CastLike":
                inputs = inputs[:1]
            if fold is None or any(array is None for array in inputs) or _is_output(node, model):
                continue
            made = fold(node, inputs)
            if made is None:
                continue
            value = store(model.graph, str(node.outputs[0].name), *made)
            node.outputs[0].replace_all_uses_with(value)


def _is_output(node: ir.Node, model: ir.Model) -> bool:
    return any(value.is_graph_output() for value in node.outputs)


def _folded_cast(node: ir.Node, inputs: list[Any]) -> tuple[Any, ...] | None:
    dtype = ir.DataType(node.attributes["to"].as_int())
    if dtype.itemsize > inputs[0].itemsize and inputs[0].ndim > 1:
        return None  # of integers that are stored as such
    return (inputs[0].astype(dtype.numpy()),)


def _folded_cast_like(node: ir.Node, inputs: list[Any]) -> tuple[Any, ...] | None:
    like = node.inputs[1]
    return None if like is None or like.dtype is None else (inputs[0].astype(like.dtype.numpy()),)


def _folded_reshape(node: ir.Node, inputs: list[Any]) -> tuple[Any, ...]:
    return (inputs[0].reshape([int(size) for size in inputs[1]]),)


def _folded_unsqueeze(node: ir.Node, inputs: list[Any]) -> tuple[Any, ...]:
    return (np.expand_dims(inputs[0], tuple(int(axis) for axis in inputs[1])),)


def _folded_concat(node: ir.Node, inputs: list[Any]) -> tuple[Any, ...]:
    return (np.concatenate(inputs, axis=node.attributes["axis"].as_int()),)


def _folded_quantize(node: ir.Node, inputs: list[Any]) -> tuple[Any, ...]:
    """The integers of a weight as torch computes them: halves round as in the quantized model."""
    import torch

    from torchquilt.backend import qdq_of

    source = node.meta["node"]
    told = qdq_of(source)
    assert told is not None
    dtype = inputs[2].dtype
    scale, zero_point = torch.from_numpy(inputs[1].copy()), torch.from_numpy(inputs[2].astype(np.int64))
    values = torch.from_numpy(inputs[0].copy())
    if not isinstance(told.scale, (int, float)):
        replaced = {told.input: values, told.scale: scale.double(), told.zero_point: zero_point}
    else:
        replaced = {told.input: values}
    arguments = [replaced.get(one, one) if hasattr(one, "op") else one for one in source.args]
    return (source.target(*arguments).numpy().astype(dtype),)


def _folded_clip(node: ir.Node, inputs: list[Any]) -> tuple[Any, ...]:
    return (np.clip(inputs[0], inputs[1], inputs[2]),)


_FOLDED: dict[str, Callable[[ir.Node, list[Any]], tuple[Any, ...] | None]] = {
    "CastLike": _folded_cast_like,
    "Cast": _folded_cast,
    "Reshape": _folded_reshape,
    "Unsqueeze": _folded_unsqueeze,
    "Concat": _folded_concat,
    "Clip": _folded_clip,
    "QuantizeLinear": _folded_quantize,
}


def pack_four_bits(model: ir.Model) -> None:
    """Store integers of 4 bits as such, two in a byte.

    Beside activations of integers the runtime computes with 8 bits alone. There it reads the integers
    through a Cast, which it does once, when it loads the program.
    """
    from torchquilt.backend import qdq_of

    for graph in graphs_of(model):
        for node in graph:
            if node.op_type != "DequantizeLinear" or node.domain or "node" not in node.meta:
                continue
            told, (integers, *parameters) = qdq_of(node.meta["node"]), node.inputs
            if told is None or integers is None or integers.dtype is None or array_of(integers) is None:
                continue
            narrow = _FOUR_BITS.get(integers.dtype)
            if narrow is None:
                continue
            low, high, dtype = narrow
            zero_point = parameters[1] if len(parameters) > 1 else None
            is_narrow = told.quant_min >= low and told.quant_max <= high
            if not is_narrow or not _fits(integers, low, high) or not _fits(zero_point, low, high):
                continue
            if _is_beside_integers(node):
                wide = ir.DataType(integers.dtype)
                cast = insert(
                    node, "Cast", [_packed(model, integers, dtype)], like=node, attributes={"to": wide}
                )
                cast.outputs[0].dtype, cast.outputs[0].shape = wide, integers.shape
                node.replace_input_with(0, cast.outputs[0])
                continue
            for position, value in ((0, integers), (2, zero_point)):
                if value is not None:
                    node.replace_input_with(position, _packed(model, value, dtype))


def _is_beside_integers(dequantize: ir.Node) -> bool:
    """Whether an operator reads a weight together with activations of integers."""
    return any(
        value is not dequantize.outputs[0] and dequantize_behind(value) is not None
        for reader in readers(dequantize.outputs[0])
        for value in reader.inputs[:1]
    )


def _fits(value: ir.Value | None, low: int, high: int) -> bool:
    array = array_of(value)
    return value is None or (
        array is not None and array.size > 0 and array.min() >= low and array.max() <= high
    )


def _packed(model: ir.Model, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    array = array_of(value)
    assert array is not None
    name = f"{value.name}_{dtype.name.lower()}"
    known = model.graph.initializers.get(name)
    return known if known is not None else store(model.graph, name, array.astype(dtype.numpy()), dtype)


# ----------------------------------------------------------------------------------------------------------
# Names
# ----------------------------------------------------------------------------------------------------------


def name_nodes(model: ir.Model) -> None:
    """Name each node after the node of the exported program that it comes from.

    The last node of an operator has the name itself, the ones before it have theirs behind a slash.
    """
    groups: dict[str, list[ir.Node]] = defaultdict(list)
    for graph in graphs_of(model):
        for node in graph:
            groups[node.metadata_props.get(SOURCE, "")].append(node)
    for source, nodes in groups.items():
        for number, node in enumerate(nodes):
            is_last = number == len(nodes) - 1 and source
            node.name = source if is_last else f"{source or 'made'}/{node.op_type}_{number}"
