"""The program that ExecuTorch is given: one of its own, which it can lay out otherwise.

ExecuTorch takes constants that it computes with, or that a delegate has for itself, out of the tables of the
program that it is given. So it gets a copy, each time that a program is brought to its dialect.

It writes attention in single operators, whose result lies otherwise in memory than that of torch's kernel. So
a view that was exported behind the kernel may be none of that result. ExecuTorch's dialect has copies for
views, which are possible of every layout; behind attention they are written right away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torchquilt.backend import copied_graph, with_graph

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Graph, Node

_ATEN = torch.ops.aten
_ATTENTION = _ATEN.scaled_dot_product_attention.default
#: Operators that lay out their results by themselves, however their inputs lie.
_LAYS_OUT = (
    _ATEN.linear.default,
    _ATEN.addmm.default,
    _ATEN.mm.default,
    _ATEN.bmm.default,
    _ATEN.matmul.default,
    _ATEN.layer_norm.default,
)


def as_given(program: ExportedProgram) -> ExportedProgram:
    """Copy a program for ExecuTorch, with views that it can lay out as it needs.

    Args:
        program: it is not changed. Shares its tensors and the subgraphs of control flow with the result.
    """
    graph, _ = copied_graph(program.graph)
    _write_views_as_copies(graph)
    return with_graph(program, graph)


def _write_views_as_copies(graph: Graph) -> None:
    """Write each view behind attention as a copy, up to the next operator that lays out its result."""
    behind: set[Node] = set()
    for node in graph.nodes:
        if node.target is _ATTENTION:
            behind.add(node)
        elif node.target not in _LAYS_OUT and not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)
            if node.target is _ATEN.view.default:
                node.target = _ATEN.view_copy.default
