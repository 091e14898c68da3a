"""Facts about a graph of ONNX: constants, and who reads a value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from onnxscript import ir

_T = TypeVar("_T")


def graphs_of(model: ir.Model) -> Iterator[ir.Graph]:
    """The graph of a model and the subgraphs of its nodes."""
    waiting: list[Any] = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph:
            attributes = node.attributes.values()
            waiting += [one.as_graph() for one in attributes if one.type is ir.AttributeType.GRAPH]


def array_of(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The elements of a constant, None for a value that is computed, or an input."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def number_of(value: ir.Value | None) -> float | None:
    """The one element of a constant, None for other values."""
    array = array_of(value)
    return array.item() if array is not None and array.size == 1 else None


def store(
    graph: ir.Graph, name: str, array: np.ndarray[Any, Any], dtype: ir.DataType | None = None
) -> ir.Value:
    """Store a constant under a free name.

    Args:
        graph: of the model.
        name: the wanted one.
        array: its elements.
        dtype: theirs, where numpy has no such dtype.
    """
    number, free = 0, name
    while free in graph.initializers:
        number += 1
        free = f"{name}_{number}"
    tensor = ir.Tensor(array, dtype=dtype, name=free) if dtype is not None else ir.Tensor(array, name=free)
    value = ir.Value(
        name=free, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def present(value: _T | None) -> _T:
    """A value that every valid model has there, though its type says that it may be missing."""
    assert value is not None
    return value


def erase(node: ir.Node) -> None:
    """Remove a node whose outputs are not read any more."""
    present(node.graph).remove(node, safe=True)


def readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read a value."""
    return list(dict.fromkeys(use.node for use in value.uses()))


def insert(
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    *,
    like: ir.Node,
    outputs: int = 1,
    attributes: Mapping[str, Any] | None = None,
) -> ir.Node:
    """Write a node right before another one, with the origin of a third.

    Args:
        before: the other one.
        op_type: of the new one.
        inputs: likewise.
        like: where it comes from.
        outputs: their number.
        attributes: likewise.
    """
    made = ir.node(op_type, inputs, attributes, num_outputs=outputs, metadata_props=dict(like.metadata_props))
    if "node" in like.meta:
        made.meta["node"] = like.meta["node"]
    present(before.graph).insert_before(before, made)
    return made


def set_type(value: ir.Value, dtype: ir.DataType | None) -> None:
    """Set the dtype of a value, as far as it is known."""
    value.type = None if dtype is None else ir.TensorType(dtype)
