"""Rows of quantized tables: the integers are looked up, and only these are dequantized.

A table that is dequantized as a whole would be kept in float while the program runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnxscript import ir

from torchquilt_onnxruntime.graphs import array_of, graphs_of, insert, present, store
from torchquilt_onnxruntime.qdq import Parameters, is_dequantize, parameters_of

_ELEMENTWISE = frozenset({"Cast", "Mul", "Sub"})


def look_up_integers(model: ir.Model) -> None:
    """Write each lookup in a dequantized table as one of integers."""
    for graph in graphs_of(model):
        for node in list(graph):
            is_lookup = node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0
            table = node.inputs[0] if is_lookup else None
            if table is None or table.producer() is None or node.inputs[1] is None:
                continue
            lookup = _Lookup(model, node)
            if lookup.is_possible(table):
                result = lookup.of(table)
                result.name, shape = node.outputs[0].name, node.outputs[0].shape
                result.dtype, result.shape = ir.DataType.FLOAT, shape
                node.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
                graph.remove(node, safe=True)


class _Lookup:
    """One lookup, and how it is written before what is computed of constants."""

    def __init__(self, model: ir.Model, gather: ir.Node) -> None:
        self._model = model
        self._gather = gather
        table = gather.inputs[0]
        self._dequantize = (table.producer() if table is not None else None) or gather
        self._indices = gather.inputs[1]
        shape = self._indices.shape if self._indices is not None else None
        self._rank = None if shape is None else len(shape)

    def is_possible(self, value: ir.Value | None) -> bool:
        """Whether a value is computed row by row of constants."""
        node = None if value is None else value.producer()
        if self._rank is None:
            return False
        if node is None:
            return array_of(value) is not None
        if is_dequantize(node):
            told, integers = parameters_of(node), array_of(node.inputs[0])
            return (
                told is not None
                and integers is not None
                and (told.is_per_tensor or _is_by_row(told, integers))
            )
        if node.op_type == "Reshape":
            return self.is_possible(node.inputs[0]) and array_of(node.inputs[1]) is not None
        return node.op_type in _ELEMENTWISE and all(map(self.is_possible, node.inputs))

    def of(self, value: ir.Value) -> ir.Value:
        """The looked up rows of a value."""
        node = value.producer()
        if node is None:
            return self._rows(value)
        if is_dequantize(node):
            return self._dequantized(node)
        if node.op_type == "Reshape":
            sizes = array_of(node.inputs[1])
            assert sizes is not None
            return self._reshaped(self.of(present(node.inputs[0])), [int(size) for size in sizes[1:]])
        inputs = [self.of(one) for one in node.inputs if one is not None]
        return self._written(node.op_type, inputs, dict(node.attributes))

    def _rows(self, value: ir.Value) -> ir.Value:
        array = array_of(value)
        assert array is not None
        if not array.ndim:
            return value
        return self._written("Gather", [value, self._indices], {"axis": 0}, ir.DataType(present(value.dtype)))

    def _reshaped(self, value: ir.Value, sizes: list[int]) -> ir.Value:
        shape = store(self._model.graph, "row_shape", np.array([0] * (self._rank or 0) + sizes, np.int64))
        return self._written("Reshape", [value, shape], {})

    def _dequantized(self, node: ir.Node) -> ir.Value:
        told, integers = parameters_of(node), node.inputs[0]
        assert told is not None
        assert integers is not None
        array = array_of(integers)
        assert array is not None
        if told.is_per_tensor:
            return self._written("DequantizeLinear", [self._rows(integers), *node.inputs[1:]], {})
        groups = told.scale.reshape(len(array), -1)
        parts = (len(array), groups.shape[1], -1)
        table = integers
        if groups.shape[1] > 1:
            table = store(self._model.graph, f"{integers.name}_groups", array.reshape(parts))
        sizes = parts if groups.shape[1] > 1 else (len(array), 1)
        scale = store(
            self._model.graph, f"{integers.name}_scales", told.scale.astype(np.float32).reshape(sizes)
        )
        floats = self._written("Cast", [self._rows(table)], {"to": ir.DataType.FLOAT})
        if told.zero_point.any():
            offsets = told.zero_point.astype(np.float32).reshape(sizes)
            offset = store(self._model.graph, f"{integers.name}_offsets", offsets)
            floats = self._written("Sub", [floats, self._rows(offset)], {})
        found = self._written("Mul", [floats, self._rows(scale)], {})
        return self._reshaped(found, [array.shape[1]]) if groups.shape[1] > 1 else found

    def _written(
        self,
        op_type: str,
        inputs: list[Any],
        attributes: dict[str, Any],
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:
        # What computes floats of the rows is what dequantizes.
        is_lookup = op_type == "Gather" and dtype.itemsize == 1
        like = self._gather if is_lookup else self._dequantize
        made = insert(self._gather, op_type, inputs, like=like, attributes=attributes)
        made.outputs[0].dtype = dtype
        return made.outputs[0]


def _is_by_row(told: Parameters, integers: np.ndarray[Any, Any]) -> bool:
    """Whether each row has parameters of its own, or each group of a row."""
    if integers.ndim != 2 or told.axis is None:
        return False
    return told.axis % 2 == 1 if told.block_size else told.axis % 2 == 0
