"""Cost of an operator: multiply-adds for one call, and the stored float tensors that it reads."""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any

from torch.fx import Node

from torchquilt.graph.node_values import overload_name, tensor_of

_CONVOLUTIONS = ("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.convolution")
_TRANSPOSED = ("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
_PRODUCTS = ("aten.matmul", "aten.mm", "aten.bmm")


def multiply_adds(node: Node) -> int:
    """Multiply-adds of linear, convolutions and matrix products for the example shapes; 0 for others.

    Every output element of a linear costs as many as the input has features, one of a convolution as
    many as the kernel has weights for it. A dimension that is dynamic counts with its example size.
    """
    packet = overload_name(node).rpartition(".")[0]
    tensors = [shape_of(source) for source in node.all_input_nodes]
    output = shape_of(node)
    if output is None or len(tensors) < 2 or tensors[0] is None or tensors[1] is None:
        return 0
    data, weight = tensors[0], tensors[1]
    if packet == "aten.linear":
        return math.prod(output) * weight[-1]
    if packet in _CONVOLUTIONS:
        return math.prod(output) * math.prod(weight[1:])
    if packet in _TRANSPOSED:
        return math.prod(data) * math.prod(weight[1:])
    if packet == "aten.addmm":
        return math.prod(output) * weight[-1]
    if packet in _PRODUCTS:
        return math.prod(output) * data[-1]
    return 0


def stored_tensors(node: Node, constants: Container[Node]) -> tuple[tuple[str, int], ...]:
    """Name and size in bytes of each stored float tensor that a node reads, directly or computed from.

    Args:
        node: the node.
        constants: the nodes of the graph that are constant (``constant_nodes``).
    """
    found = {}
    pending = [source for source in node.all_input_nodes if source in constants]
    while pending:
        source = pending.pop()
        value = tensor_of(source)
        if source.op != "get_attr":
            pending.extend(source.all_input_nodes)
        elif value is not None and value.dtype.is_floating_point:
            found[str(source.target)] = math.prod(shape_of(source) or ()) * value.dtype.itemsize
    return tuple(found.items())


def shape_of(node: Node) -> tuple[int, ...] | None:
    """The shape of a node's tensor, dynamic dimensions at their example size; None for what is no tensor."""
    value = tensor_of(node)
    return None if value is None else tuple(_size(size) for size in value.shape)


def _size(size: Any) -> int:
    if isinstance(size, int):
        return size
    hint = size.node.hint if size.node.has_hint() else None
    return 1 if hint is None else int(hint)
