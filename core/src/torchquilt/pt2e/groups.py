"""Which tensors have one set of parameters: found over the whole graph first, then settled once.

A *place* is the output of a node, or the edge from a node to one of its users. Places are joined

1. explicitly, where an annotation says :class:`torchquilt.SharedQuantizationSpec`;
2. implicitly, where places are the same tensor (an output and its edges) and ask for the same spec.

Neither depends on the order of nodes. Explicit sharing makes a tree, so a group that it makes has one
spec, that of its root; if there is no root, the places only point at each other, and that is an error.
Implicit sharing joins groups only where their specs are equal. So no group ever has to be settled: a
tensor that is made with one spec and used with another (a fixed one, that of another backend) is in two
groups, and is requantized where it is used.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from torch.fx import Graph, Node

from torchquilt.annotation import annotation_of
from torchquilt.errors import SharingError
from torchquilt.spec import AnySpec, EdgeOrNode, OwnSpec, SharedQuantizationSpec


@attrs.frozen(eq=False)
class Group:
    """Places with one set of parameters, in graph order, and the spec that holds for them."""

    spec: OwnSpec
    places: tuple[EdgeOrNode, ...]


def producer_of(place: EdgeOrNode) -> Node:
    """The node whose value stands at a place."""
    return place[0] if isinstance(place, tuple) else place


def place_name(place: EdgeOrNode) -> str:
    """``conv2d`` for an output, ``relu → conv2d`` for an edge."""
    return f"{place[0].name} → {place[1].name}" if isinstance(place, tuple) else place.name


def find_groups(graph: Graph) -> tuple[Group, ...]:
    """The groups of an annotated graph, in the order of their first place.

    Raises:
        SharingError: a sharing that points to a place without a spec, or one that only points in a circle.
    """
    specs = _annotated_places(graph)
    joined = _DisjointSets(specs)
    for place, spec in specs.items():
        if isinstance(spec, SharedQuantizationSpec):
            if spec.edge_or_node not in specs:
                raise SharingError(
                    f"{place_name(place)} shares the parameters of a place that has no spec.",
                    node=place_name(place),
                    quantizer=_owner(place),
                    expected="a place that is annotated with a spec",
                    got=place_name(spec.edge_or_node),
                    remedy="annotate that place, too, or give this one a spec of its own",
                )
            joined.unite(place, spec.edge_or_node)
    root_spec: dict[EdgeOrNode, OwnSpec] = {}
    for members in joined.sets():
        root_spec.update(dict.fromkeys(members, _root_spec(members, specs)))
    for same_tensor in _places_by_tensor(specs):
        first_with: dict[OwnSpec, EdgeOrNode] = {}
        for place in same_tensor:
            joined.unite(first_with.setdefault(root_spec[place], place), place)
    return tuple(Group(root_spec[members[0]], members) for members in joined.sets())


def _annotated_places(graph: Graph) -> dict[EdgeOrNode, AnySpec]:
    specs: dict[EdgeOrNode, AnySpec] = {}
    for node in graph.nodes:
        annotation = annotation_of(node)
        if annotation is None:
            continue
        for producer, spec in annotation.input_qspec_map.items():
            if spec is not None:
                specs[producer, node] = spec
        if annotation.output_qspec is not None:
            specs[node] = annotation.output_qspec
    return specs


def _places_by_tensor(specs: Iterable[EdgeOrNode]) -> Iterable[list[EdgeOrNode]]:
    """The places of each tensor that may be joined because they are the same tensor."""
    by_producer: dict[Node, list[EdgeOrNode]] = {}
    for place in specs:
        if isinstance(place, tuple):
            annotation = annotation_of(place[1])
            if annotation is not None and not annotation.allow_implicit_sharing:
                continue
        by_producer.setdefault(producer_of(place), []).append(place)
    return by_producer.values()


def _root_spec(members: tuple[EdgeOrNode, ...], specs: dict[EdgeOrNode, AnySpec]) -> OwnSpec:
    """The spec of the one place of a group that does not point at another."""
    for place in members:
        spec = specs[place]
        if not isinstance(spec, SharedQuantizationSpec):
            return spec
    raise SharingError(
        "These places share parameters in a circle, and none of them has a spec.",
        node=" → ".join(place_name(place) for place in (*members, members[0])),
        quantizer=_owner(members[0]),
        expected="one place with a spec of its own",
        got="only SharedQuantizationSpec",
        remedy="give one of them a QuantizationSpec",
    )


def _owner(place: EdgeOrNode) -> str:
    annotation = annotation_of(place[1] if isinstance(place, tuple) else place)
    return (annotation.quantizer if annotation else "") or "unnamed"


class _DisjointSets:
    """Union-find over places. The representative of a set is its first place in graph order."""

    def __init__(self, places: Iterable[EdgeOrNode]) -> None:
        self._rank = {place: number for number, place in enumerate(places)}
        self._parent: dict[EdgeOrNode, EdgeOrNode] = {place: place for place in self._rank}

    def first(self, place: EdgeOrNode) -> EdgeOrNode:
        root = place
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[place] != root:  # path compression
            self._parent[place], place = root, self._parent[place]
        return root

    def unite(self, left: EdgeOrNode, right: EdgeOrNode) -> None:
        left, right = self.first(left), self.first(right)
        if self._rank[left] > self._rank[right]:
            left, right = right, left
        self._parent[right] = left

    def sets(self) -> tuple[tuple[EdgeOrNode, ...], ...]:
        members: dict[EdgeOrNode, list[EdgeOrNode]] = {}
        for place in self._parent:
            members.setdefault(self.first(place), []).append(place)
        return tuple(tuple(places) for places in members.values())
