"""The rules of every graph between two passes of the flow: those of graphs, and those of annotations."""

from __future__ import annotations

from torch.fx import Node

from torchquilt.graph.invariants import INVARIANTS as OF_GRAPHS
from torchquilt.graph.invariants import Invariant
from torchquilt.graph.node_values import attribute, writes_to
from torchquilt.graph.subgraphs import Region
from torchquilt.pt2e.observer_points import QuantizationPoint
from torchquilt.spec.annotation import annotation_of


def _readers_of_float(node: Node, region: Region) -> str:
    """Readers of the output of an operator beside the observer that stands behind it.

    An input is no output of an operator: it is not computed, and guards check it as it was handed in.
    """
    annotation = annotation_of(node)
    if node.op == "placeholder" or annotation is None or annotation.output_qspec is None:
        return ""
    others = [user for user in node.users if not _is_point(user, region) and not writes_to(user, node)]
    return "" if len(others) == len(node.users) else ", ".join(user.name for user in others)


def _is_point(node: Node, region: Region) -> bool:
    return node.op == "call_module" and isinstance(
        attribute(region.module, str(node.target)), QuantizationPoint
    )


#: Every rule, in the order in which they are checked.
INVARIANTS = (
    *OF_GRAPHS,
    Invariant(
        "quantized_once",
        "an output that is quantized is read by its observer alone, and others read that",
        _readers_of_float,
    ),
)
