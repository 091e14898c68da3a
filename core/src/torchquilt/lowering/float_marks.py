"""The decisions of the ledger on the nodes of a program, for those who hand operators to a delegate.

An operator between dequantize and quantize looks quantized, whether a quantizer took it or not. A delegate
that concludes so computes with integers what was to stay in float, with parameters that do not fit it. So
what stays in float is marked. torch and ExecuTorch hand the mark on to whatever becomes of the node.

Importing this module does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.export import ExportedProgram

#: Of what a node has, torch copies this to the nodes that it is decomposed into.
_HANDED_ON = "custom"
_MARK = "torchquilt_stays_in_float"


def stays_in_float(node: Any) -> bool:
    """Whether a node comes from an operator that the ledger left in float.

    False for what the ledger does not know: what quantizes and dequantizes, and programs without a ledger.

    Args:
        node: of the program that is lowered, or of any program that is made of it on the way.
    """
    return bool((node.meta.get(_HANDED_ON) or {}).get(_MARK))


def with_decisions(program: ExportedProgram, in_float: Iterable[str]) -> ExportedProgram:
    """A copy of a program in which the nodes of these names are marked. Tensors are shared."""
    from torchquilt.graph.edits import copied_graph, with_graph

    names = frozenset(in_float)
    if not names:
        return program
    graph, nodes = copied_graph(program.graph)
    for node in nodes.values():
        if node.name in names:
            node.meta[_HANDED_ON] = {**(node.meta.get(_HANDED_ON) or {}), _MARK: True}
    return with_graph(program, graph)
