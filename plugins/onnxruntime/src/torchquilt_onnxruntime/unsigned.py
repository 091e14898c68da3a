"""Activations of int8 as uint8, which the runtime's kernels on x86 take.

``q + 128`` with a zero point that is 128 higher stands for the same number, so this is exact. It is done for
tensors that are only quantized, moved, clamped and dequantized; inputs and outputs of the program stay.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnxscript import ir

from torchquilt_onnxruntime.graphs import array_of, graphs_of, readers, store
from torchquilt_onnxruntime.movement import JOINING, MOVING
from torchquilt_onnxruntime.qdq import is_dequantize, is_quantize, parameters_of

_SHIFT = 128


def write_unsigned(model: ir.Model) -> None:
    """Write activations of int8 as uint8."""
    seen: set[ir.Value] = set()
    for graph in graphs_of(model):
        for node in list(graph):
            value = node.outputs[0] if is_quantize(node) else None
            if value is None or value.dtype is not ir.DataType.INT8 or value in seen:
                continue
            values = _together(value)
            if values is not None:
                seen |= values
                _shift(model, values)


def _together(first: ir.Value) -> set[ir.Value] | None:
    """The tensors that change with one; None where one of them cannot be changed."""
    found: set[ir.Value] = set()
    waiting = [first]
    while waiting:
        value = waiting.pop()
        if value in found:
            continue
        found.add(value)
        around = [value.producer(), *readers(value)]
        if value.is_graph_output() or value.is_graph_input() or not all(map(_can_change, around)):
            return None
        for node in around:
            waiting += [one for one in _integers(node) if one not in found]
    return found


def _can_change(node: ir.Node | None) -> bool:
    if node is None or node.domain:
        return False
    if is_quantize(node) or is_dequantize(node):
        told = parameters_of(node)
        return told is not None and told.dtype is ir.DataType.INT8 and node.inputs[0] is not None
    if node.op_type == "Clip":
        return all(value is None or array_of(value) is not None for value in node.inputs[1:])
    return node.op_type in MOVING or node.op_type in JOINING or node.op_type == "Shape"


def _integers(node: ir.Node | None) -> Iterator[ir.Value]:
    """The tensors of integers at a node that are no constants."""
    if node is None or node.op_type == "Shape":
        return
    if not is_quantize(node):
        inputs = node.inputs if node.op_type in JOINING else node.inputs[:1]
        yield from (value for value in inputs if value is not None)
    if not is_dequantize(node):
        yield from node.outputs


def _shift(model: ir.Model, values: set[ir.Value]) -> None:
    nodes = {node: None for value in values for node in (value.producer(), *readers(value)) if node}
    for node in nodes:
        if is_quantize(node) or is_dequantize(node):
            position = 2
            if len(node.inputs) == position:
                node.resize_inputs(position + 1)
            _shift_constant(model, node, position)
        elif node.op_type == "Clip":
            for position in range(1, len(node.inputs)):
                _shift_constant(model, node, position)
    for value in values:
        value.dtype = ir.DataType.UINT8


def _shift_constant(model: ir.Model, node: ir.Node, position: int) -> None:
    value = node.inputs[position]
    if value is None and node.op_type == "Clip":
        return
    old = np.zeros((), np.int8) if value is None else array_of(value)
    assert old is not None
    name = f"{value.name if value is not None else node.name}_uint8"
    known = model.graph.initializers.get(name)
    shifted = (old.astype(np.int16) + _SHIFT).astype(np.uint8)
    found = array_of(known)
    if known is None or found is None or not np.array_equal(found, shifted):
        known = store(model.graph, name, shifted)
    node.replace_input_with(position, known)
