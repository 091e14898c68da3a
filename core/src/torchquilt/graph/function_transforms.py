"""Regions of a graph that run under a function transform of torch: ``torch.vmap``, ``torch.func.jvp``.

Export writes them out between calls that enter and leave the transform, ``_vmap_increment_nesting`` and
``_vmap_decrement_nesting`` for instance. In between tensors are wrapped: one that is batched has a dimension
more than it says. An observer cannot read it, and parameters of a tensor would be parameters of a sample. So
what is in there stays in float. ``ExportedProgram.run_decompositions({})`` writes such a program without the
transform.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torchquilt._internal import torch_private

if TYPE_CHECKING:
    from torch.fx import Graph, Node

#: Why a node in there stays in float, behind its name.
UNDER_A_TRANSFORM = (
    "runs under torch.vmap or another function transform, whose tensors cannot be observed: "
    "exported.run_decompositions({}) writes the program without it"
)

#: Where the functions come from that export writes for a transform.
_MODULES = ("torch._functorch.predispatch", "torch._C._functorch")

# What enters a transform → what leaves it.
_LEVELS = {
    "_vmap_increment_nesting": "_vmap_decrement_nesting",
    "_jvp_increment_nesting": "_jvp_decrement_nesting",
    "_grad_increment_nesting": "_grad_decrement_nesting",
    "_func_increment_nesting": "_func_decrement_nesting",
    "_enter_dual_level": "_exit_dual_level",
}
_LEAVING = frozenset(_LEVELS.values())


def transformed_nodes(graph: Graph) -> frozenset[Node]:
    """All nodes of a graph that run under a function transform, with those that enter and leave it."""
    found: set[Node] = set()
    depth = 0
    for node in graph.nodes:
        name = _function_name(node)
        if name in _LEVELS:
            depth += 1
        if depth or name:
            found.add(node)
        if name in _LEAVING:
            depth -= 1
    return frozenset(found)


def _function_name(node: Node) -> str:
    """The name of the function of functorch that a node calls; empty where it calls none."""
    if node.op != "call_function" or getattr(node.target, "__module__", "") not in _MODULES:
        return ""
    return str(getattr(node.target, "__name__", ""))


@contextmanager
def leaving_transforms() -> Iterator[None]:
    """Leave the transforms that the block enters and does not leave, as where an operator in them fails."""
    from torch.autograd import forward_ad

    depth = torch_private.functorch.get_dynamic_layer_stack_depth()
    level = forward_ad._current_level
    try:
        yield
    finally:
        while forward_ad._current_level > level:
            forward_ad.exit_dual_level()  # type: ignore[no-untyped-call]
        if torch_private.functorch.get_dynamic_layer_stack_depth() > depth:
            torch_private.functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)
