"""Average pooling with a divisor of its own, written in operators that runtimes have.

torch divides the sum of each window by the divisor, whether padding is counted or not. Runtimes divide by the
number of elements. So zeros are padded first, the windows of the kernel's size are averaged, and the averages
are multiplied with that size over the divisor.

In ceil mode a window may hang over the end, where torch cuts it off, and one that begins in the padding is
dropped. So many zeros are padded at the end that there are as many whole windows.

Importing this module does not import torch.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

from torchquilt.graph.node_values import arguments_of, overload_name, tensor_of
from torchquilt.graph.subgraphs import nodes_of
from torchquilt.support import operators as ops

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Graph, GraphModule, Node

#: Overload → its number of dimensions that windows have.
_DIMENSIONS = {
    **dict.fromkeys(ops.AVG_POOL2D.overloads, 2),
    **dict.fromkeys(ops.AVG_POOL3D.overloads, 3),
}
_PASS = "without_pool_divisors"


def without_pool_divisors(program: ExportedProgram) -> ExportedProgram:
    """Write each average with a divisor of its own as a pad with zeros, a plain average and a product.

    A runtime that has no such averages, or leaves the divisor out, computes the right values then. The
    new nodes come from the average, as :class:`torchquilt.backend.Origins` finds.

    Args:
        program: it is not changed, and is returned where it has no such averages of floats.
    """
    from torchquilt.graph.edits import with_graph

    if not any(map(_has_divisor, nodes_of(program.graph_module))):
        return program
    written = _written(program.graph_module)
    return with_graph(program, written.graph, root=written)


def _has_divisor(node: Node) -> bool:
    """Whether a node averages floats with a divisor; of integers torch rounds the quotient."""
    value = tensor_of(node)
    return (
        overload_name(node) in _DIMENSIONS
        and value is not None
        and value.dtype.is_floating_point
        and arguments_of(node)["divisor_override"] is not None
    )


def _written(module: GraphModule) -> GraphModule:
    """A copy of a graph and of the subgraphs that it reads, without divisors; tensors are shared."""
    from torch.fx import GraphModule

    from torchquilt.graph.edits import copied_graph

    graph, _ = copied_graph(module.graph)
    for node in [*graph.nodes]:
        if _has_divisor(node):
            _write_out(graph, node)
    made = copy.copy(module)
    made._modules = dict(module._modules)
    for name, inner in module._modules.items():
        if isinstance(inner, GraphModule):
            made._modules[name] = _written(inner)
    result = GraphModule(made, graph)
    result.meta.update(module.meta)
    return result


def _write_out(graph: Graph, node: Node) -> None:
    """Replace an average by what computes the same; the last node takes its name."""
    import torch

    aten: Any = torch.ops.aten
    given, count = arguments_of(node), _DIMENSIONS[overload_name(node)]
    read, divisor = given["self"], given["divisor_override"]
    kernel = _for_each(given["kernel_size"], count)
    stride = _for_each(given["stride"] or kernel, count)
    zeros = _zeros(kernel, stride, _for_each(given["padding"], count), ceil_mode=given["ceil_mode"])
    with graph.inserting_before(node):
        if any(zeros):
            padded = _padded(read.meta["val"], zeros)
            read = _part_of(node, padded, aten.constant_pad_nd.default, read, zeros, 0.0)
        value = node.meta["val"]
        averaged = _part_of(node, value, node.target, read, kernel, stride, [0] * count)
        made = _part_of(node, value, aten.mul.Tensor, averaged, math.prod(kernel) / divisor)
    node.replace_all_uses_with(made)
    graph.erase_node(node)
    made.name = node.name  # by which the signature knows it


def _part_of(node: Node, value: Any, target: Any, *args: Any) -> Node:
    """A new node that computes a part of what another one does, and comes from it."""
    from torch.fx.traceback import NodeSource, NodeSourceAction

    made = node.graph.call_function(target, args)
    source = NodeSource(node, _PASS, NodeSourceAction.CREATE)
    made.meta = {**node.meta, "from_node": [source], "val": value}
    return made


def _padded(value: Any, zeros: list[int]) -> Any:
    """The fake tensor of a padded one. To pad the fake tensor itself would fix dynamic sizes."""
    sizes = list(value.shape)
    for number, added in enumerate(zeros):
        sizes[-1 - number // 2] += added
    return value.new_empty(sizes)


def _for_each(sizes: Any, count: int) -> list[int]:
    """Sizes for each dimension of a window, of which one may stand for all."""
    listed = [*sizes] if isinstance(sizes, (list, tuple)) else [sizes]
    return listed * count if len(listed) == 1 else listed


def _zeros(kernel: list[int], stride: list[int], padding: list[int], *, ceil_mode: bool) -> list[int]:
    """Numbers of zeros before and behind each dimension, the last one first, as torch pads."""
    found: list[int] = []
    for size, step, zeros in zip(kernel, stride, padding, strict=True):
        # Ceil mode adds the window that the next step - 1 elements complete, and torch drops what begins
        # behind the last element. So this depends on no size of the image, which may be dynamic.
        behind = min(zeros + step - 1, size - 1) if ceil_mode else zeros
        found = [zeros, behind, *found]
    return found
