"""Pairs of operators: what computes the same in a float model and in the model that was quantized of it.

Nodes are paired by provenance: each node of a quantized model says which node of the exported model it comes
from (``from_node``), also after it was saved and loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from torch.fx import Graph, GraphModule, Node

from torchquilt.graph.aliasing import aliased_inputs
from torchquilt.graph.cost import shape_of
from torchquilt.graph.function_transforms import transformed_nodes
from torchquilt.graph.node_values import (
    constant_nodes,
    is_float_tensor,
    overload_name,
    tensor_of,
    writes,
)
from torchquilt.graph.qdq import is_conversion, is_dequantize
from torchquilt.graph.subgraphs import Region, regions

_NORMALIZES = ("aten.batch_norm", "aten._native_batch_norm", "aten.native_batch_norm")
_INTEGERS = ("torch.int8", "torch.uint8", "torch.int16", "torch.int32")
_UNSET = ("aten.empty", "aten.new_empty")


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

    @property
    def is_folded(self) -> bool:
        """Whether a BatchNorm was folded into it."""
        return overload_name(self.expected).startswith(_NORMALIZES) and not overload_name(
            self.found
        ).startswith(_NORMALIZES)


@attrs.frozen(eq=False)
class Pairing:
    """All pairs of two models.

    Args:
        pairs: of operators.
        unpaired: operators of the float model that are not compared.
        origins: node of the quantized model → name of the float node that it comes from, in its graph.
    """

    pairs: tuple[OperatorPair, ...]
    unpaired: tuple[Unpaired, ...]
    origins: Mapping[Node, str]


@attrs.frozen(eq=False)
class Unpaired:
    """An operator that one of the two models does not have as such.

    Args:
        node: its name.
        reason: a sentence.
    """

    node: str
    reason: str


def pair_operators(expected: GraphModule, found: GraphModule) -> Pairing:
    """Pair the operators of two models that return float tensors.

    Args:
        expected: the float model.
        found: the quantized one.
    """
    pairs: list[OperatorPair] = []
    unpaired: list[Unpaired] = []
    origins: dict[Node, str] = {}
    theirs = {region.path: region for region in regions(found)}
    for region in regions(expected):
        if region.path not in theirs:
            unpaired.append(Unpaired(region.path, "the quantized model has no such subgraph"))
            continue
        graph = theirs[region.path].module.graph
        find = _Origins(region.module.graph)
        origins |= {node: find.origin_of(node) for node in graph.nodes}
        here, missing = _pairs_of(region, _by_origin(graph, origins), _of_integers(graph, origins))
        pairs += here
        unpaired += missing
    return Pairing(tuple(pairs), tuple(unpaired), origins)


def _pairs_of(
    region: Region, by_origin: Mapping[str, list[Node]], of_integers: frozenset[str]
) -> tuple[list[OperatorPair], list[Unpaired]]:
    pairs: dict[Node, OperatorPair] = {}
    unpaired = []
    graph = region.module.graph
    unset = _unset_memory(graph)
    for node in _operators(graph):
        name = region.name_of(node)
        counterpart = _counterpart(node, by_origin.get(node.name, []), of_integers=node.name in of_integers)
        if node in unset:
            unpaired.append(Unpaired(name, "its memory is not set"))
        elif counterpart is not None:
            pairs[node] = OperatorPair(name, node, counterpart)
        elif (folded := _folded_into(node, pairs)) is not None:
            # What follows a folded BatchNorm reads the convolution, whose value is that of the BatchNorm.
            pairs[node] = attrs.evolve(pairs.pop(folded), expected=node)
        elif node.name in of_integers:
            unpaired.append(Unpaired(name, "it is computed with integers, which nothing dequantizes there"))
        else:
            unpaired.append(Unpaired(name, "no operator of the quantized model returns a tensor like it"))
    return list(pairs.values()), unpaired


def _operators(graph: Graph) -> Iterator[Node]:
    passed_over = constant_nodes(graph) | transformed_nodes(graph)
    for node in graph.nodes:
        if node.op == "call_function" and node not in passed_over and is_float_tensor(node):
            yield node


def _unset_memory(graph: Graph) -> frozenset[Node]:
    """The nodes that return memory which is set by a later write, or never."""
    wholes: dict[Node, Node] = {}
    views: dict[Node, list[Node]] = {}
    unset: set[Node] = set()
    for node in graph.nodes:
        if overload_name(node).startswith(_UNSET):
            wholes[node], views[node] = node, [node]
            unset.add(node)
            continue
        sources = aliased_inputs(node) if node.op == "call_function" else ()
        whole = next((wholes[source] for source in sources if source in wholes), None)
        if whole is None:
            continue
        wholes[node] = whole
        if writes(node):
            unset.update(views[whole])
        else:
            views[whole].append(node)
    return frozenset(unset)


def _by_origin(graph: Graph, origins: Mapping[Node, str]) -> dict[str, list[Node]]:
    found: dict[str, list[Node]] = {}
    for node in _operators(graph):
        found.setdefault(origins[node], []).append(node)
    return found


def _of_integers(graph: Graph, origins: Mapping[Node, str]) -> frozenset[str]:
    """The operators of an integer reference, in which floats hold integers as well."""
    return frozenset(origins[node] for node in graph.nodes if _computes_integers(node))


def _computes_integers(node: Node) -> bool:
    if node.op != "call_function" or is_conversion(node):
        return False
    value = tensor_of(node)
    return value is not None and str(value.dtype) in _INTEGERS


def _counterpart(node: Node, candidates: list[Node], *, of_integers: bool) -> Node | None:
    """The last node that comes from it and returns a tensor of its shape.

    Args:
        node: of the float model.
        candidates: of the quantized model.
        of_integers: it is computed with integers: what is dequantized then is its value.
    """
    shape = shape_of(node)
    alike = [one for one in candidates if shape_of(one) == shape]
    computed = [one for one in alike if not is_conversion(one)]
    if computed and not of_integers:
        return computed[-1]
    returned = [one for one in alike if is_dequantize(one)]
    return returned[-1] if returned else None


def _folded_into(node: Node, pairs: dict[Node, OperatorPair]) -> Node | None:
    """The operator before a BatchNorm that the quantized model lacks."""
    if not overload_name(node).startswith(_NORMALIZES):
        return None
    source = node.all_input_nodes[0]
    return source if source in pairs else None


class _Origins:
    """The nodes of a float graph, to be found by the names that a node and its sources have.

    A node is known by its own name and the names that it had in earlier graphs, the last one first. That of
    the exported program is the first one that it shares with a node which was made from it: before it stand
    names of later graphs, behind it those that the code had while it was traced.
    """

    def __init__(self, graph: Graph) -> None:
        self._exact = {_names_of(node): node.name for node in graph.nodes}
        self._ends: dict[tuple[str, ...], str | None] = {}
        for names, name in self._exact.items():
            for start in range(1, len(names)):
                end = names[start:]
                # What is traced from one line may be several nodes: that says nothing.
                self._ends[end] = None if end in self._ends else name

    def origin_of(self, node: Node) -> str:
        """Name of the float node that a node comes from, or the earliest name that it had."""
        names = _names_of(node)
        for start in range(len(names)):
            found = self._exact.get(names[start:]) or self._ends.get(names[start:])
            if found is not None:
                return found
        return names[-1]


def _names_of(node: Node) -> tuple[str, ...]:
    """The name of a node and those of its sources, the last one first, each repeated one once."""
    names, sources = [node.name], node.meta.get("from_node")
    while sources:
        last: Any = sources[-1]
        if last.name != names[-1]:
            names.append(last.name)
        sources = last.from_node
    return tuple(names)
