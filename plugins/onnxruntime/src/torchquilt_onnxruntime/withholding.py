"""Operators that are left in float, since the runtime refuses them otherwise.

Such an operator reads weights that are dequantized beforehand, and activations through a Max with minus
infinity, which changes none of them. So neither our steps nor the runtime's fusions make integers of it.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from onnxscript import ir

from torchquilt_onnxruntime.exporting import KIND, SOURCE
from torchquilt_onnxruntime.graphs import array_of, graphs_of, insert, store
from torchquilt_onnxruntime.qdq import dequantize_behind, parameters_of

_WITHHELD = "torchquilt_withheld"


def withhold(model: ir.Model, sources: Collection[str]) -> None:
    """Leave the operators of some nodes of the exported program in float."""
    for graph in graphs_of(model):
        for node in list(graph):
            told = node.metadata_props
            if told.get(SOURCE) in sources and told.get(KIND) == "operator":
                node.meta[_WITHHELD] = True
                _read_floats(model, node)


def is_withheld(node: ir.Node) -> bool:
    """Whether a node is left in float."""
    return bool(node.meta.get(_WITHHELD))


def _read_floats(model: ir.Model, node: ir.Node) -> None:
    for position, value in enumerate(node.inputs):
        dequantize = dequantize_behind(value)
        if dequantize is None or value is None:
            continue
        floats = _dequantized(dequantize)
        if floats is not None:
            node.replace_input_with(position, store(model.graph, f"{value.name}_float", floats))
            continue
        least = store(model.graph, "minus_infinity", np.array(-np.inf, np.float32))
        guard = insert(node, "Max", [value, least], like=node)
        guard.meta[_WITHHELD] = True
        guard.outputs[0].dtype, guard.outputs[0].shape = ir.DataType.FLOAT, value.shape
        node.replace_input_with(position, guard.outputs[0])


def _dequantized(node: ir.Node) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    """The elements of a weight; None for a value that is computed."""
    integers, told = array_of(node.inputs[0]), parameters_of(node)
    if integers is None or told is None:
        return None
    scale, zero_point = told.scale.astype(np.float32), told.zero_point
    if told.block_size and told.axis is not None:
        scale, zero_point = (
            np.repeat(one, told.block_size, told.axis) for one in (scale, zero_point.reshape(scale.shape))
        )
    elif told.axis is not None:
        sizes = [1] * integers.ndim
        sizes[told.axis] = -1
        scale, zero_point = scale.reshape(sizes), zero_point.reshape(sizes)
    found: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = (
        integers.astype(np.int64) - zero_point
    ).astype(np.float32) * scale
    return found
