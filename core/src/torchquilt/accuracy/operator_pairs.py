"""Pairs of operators: what computes the same in a float model and in the model that was quantized of it.

Nodes are paired by provenance: each node of a quantized model says which node of the exported model it comes
from (``from_node``), also after it was saved and loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
from torch.fx import GraphModule, Node

from torchquilt.graph.cost import shape_of
from torchquilt.graph.function_transforms import transformed_nodes
from torchquilt.graph.node_values import constant_nodes, is_float_tensor, overload_name, writes
from torchquilt.graph.qdq import is_conversion, is_dequantize
from torchquilt.graph.subgraphs import Region, regions

_NORMALIZES = ("aten.batch_norm", "aten._native_batch_norm", "aten.native_batch_norm")


@attrs.frozen(eq=False)
class OperatorPair:
    """An operator of the float model, and the node of the quantized model that computes it.

    Args:
        name: of the float node, with the path of its subgraph; as the ledger has it, too.
        expected: the float node whose value is compared. Where a BatchNorm was folded it is the BatchNorm.
        found: the node of the quantized model.
    """

    name: str
    expected: Node
    found: Node


@attrs.frozen(eq=False)
class Unpaired:
    """An operator that one of the two models does not have as such.

    Args:
        node: its name.
        reason: a sentence.
    """

    node: str
    reason: str


def pair_operators(
    expected: GraphModule, found: GraphModule
) -> tuple[tuple[OperatorPair, ...], tuple[Unpaired, ...]]:
    """Pair the operators of two models that return float tensors.

    Args:
        expected: the float model.
        found: the quantized one.
    """
    pairs: list[OperatorPair] = []
    unpaired: list[Unpaired] = []
    theirs = {region.path: region for region in regions(found)}
    for region in regions(expected):
        if region.path not in theirs:
            unpaired.append(Unpaired(region.path, "the quantized model has no such subgraph"))
            continue
        here, missing = _pairs_of(region, theirs[region.path])
        pairs += here
        unpaired += missing
    return tuple(pairs), tuple(unpaired)


def _pairs_of(region: Region, theirs: Region) -> tuple[list[OperatorPair], list[Unpaired]]:
    by_origin = _by_origin(theirs.module)
    pairs: dict[Node, OperatorPair] = {}
    unpaired = []
    for node in _operators(region.module):
        name = region.name_of(node)
        counterpart = _counterpart(node, by_origin.get(node.name, []))
        if counterpart is not None:
            pairs[node] = OperatorPair(name, node, counterpart)
        elif (folded := _folded_into(node, pairs)) is not None:
            # What follows a folded BatchNorm reads the convolution, whose value is that of the BatchNorm.
            pairs[node] = attrs.evolve(pairs.pop(folded), expected=node)
        else:
            unpaired.append(Unpaired(name, "no operator of the quantized model returns a tensor like it"))
    return list(pairs.values()), unpaired


def _operators(model: GraphModule) -> Iterator[Node]:
    passed_over = constant_nodes(model.graph) | transformed_nodes(model.graph)
    for node in model.graph.nodes:
        computes = node.op == "call_function" and node not in passed_over
        if computes and is_float_tensor(node) and not writes(node):
            yield node


def _by_origin(model: GraphModule) -> dict[str, list[Node]]:
    found: dict[str, list[Node]] = {}
    for node in _operators(model):
        found.setdefault(origin_of(node), []).append(node)
    return found


def _counterpart(node: Node, candidates: list[Node]) -> Node | None:
    """The last node that comes from it and returns a tensor of its shape.

    An integer reference computes with integers, and dequantizes what comes out.
    """
    shape = shape_of(node)
    alike = [one for one in candidates if shape_of(one) == shape]
    computed = [one for one in alike if not is_conversion(one)]
    if computed:
        return computed[-1]
    returned = [one for one in alike if is_dequantize(one)]
    return returned[-1] if returned else None


def _folded_into(node: Node, pairs: dict[Node, OperatorPair]) -> Node | None:
    """The operator before a BatchNorm that the quantized model lacks."""
    if not overload_name(node).startswith(_NORMALIZES):
        return None
    source = node.all_input_nodes[0]
    return source if source in pairs else None


def origin_of(node: Node) -> str:
    """Name of the node of the exported model that a node comes from, within its graph."""
    name, sources = node.name, node.meta.get("from_node")
    while sources:
        last: Any = sources[-1]
        name, sources = last.name, last.from_node
    return name
