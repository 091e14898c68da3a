"""Which tensors have one set of parameters: found over the whole graph first, then settled once.

A *place* is the output of a node, or the edge from a node to one of its users. The rule:

1. A place that says :class:`torchquilt.SharedQuantizationSpec` is in the group of the place that it names.
   It names one, so places that share make a tree, and the spec of its root holds for all of them,
   whatever its kind and whatever their values are.
2. Places of one tensor (an output and its edges) are joined where the specs that hold for them are
   equal, except for edges of a node that declines it (``allow_implicit_sharing=False``). An ordinary, a
   fixed and a derived spec are never equal.
3. So a group has one spec. A tensor that is made with one and used with another is in two groups, and is
   requantized where it is used.
4. The parameters of a group with a fixed spec are those that it says; no place of it is observed.
5. The parameters of a group with a derived spec are computed, once, from those of the groups that hold
   its sources, which may be derived as well.
6. Places that take their parameters from each other in a circle, by sharing or by derivation, have none:
   an error. So is a source that is not annotated.
7. Dynamic parameters are found for each tensor by itself, when the model runs. Sharing them between
   tensors, and deriving from them, are errors.

None of this depends on the order of nodes, nor on that in which annotations were written.
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterable

import attrs
from torch.fx import Graph, Node

from torchquilt.errors import SharingError
from torchquilt.spec.annotation import annotation_of
from torchquilt.spec.qspec import (
    AnySpec,
    DerivedQuantizationSpec,
    EdgeOrNode,
    OwnSpec,
    QuantizationSpec,
    SharedQuantizationSpec,
)


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
        SharingError: parameters that are shared with or derived from a place without a spec, from one
            that has none of its own in the end, or from one whose parameters are dynamic.
    """
    specs = _annotated_places(graph)
    _check_sources(specs)
    _check_circles(specs)
    joined = _DisjointSets(specs)
    for place, spec in specs.items():
        if isinstance(spec, SharedQuantizationSpec):
            joined.unite(place, spec.edge_or_node)
    root_spec: dict[EdgeOrNode, OwnSpec] = {}
    for members in joined.sets():
        root_spec.update(dict.fromkeys(members, _root_spec(members, specs)))
    for same_tensor in _places_by_tensor(specs):
        first_with: dict[OwnSpec, EdgeOrNode] = {}
        for place in same_tensor:
            joined.unite(first_with.setdefault(root_spec[place], place), place)
    groups = tuple(Group(root_spec[members[0]], members) for members in joined.sets())
    _check_dynamic(groups, root_spec)
    return groups


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


def _sources(spec: AnySpec) -> tuple[EdgeOrNode, ...]:
    """The places from which a spec takes its parameters."""
    if isinstance(spec, SharedQuantizationSpec):
        return (spec.edge_or_node,)
    return spec.derived_from if isinstance(spec, DerivedQuantizationSpec) else ()


def _check_sources(specs: dict[EdgeOrNode, AnySpec]) -> None:
    """Every place that parameters are taken from is annotated itself."""
    for place, spec in specs.items():
        for source in _sources(spec):
            if source not in specs:
                verb = "shares" if isinstance(spec, SharedQuantizationSpec) else "derives"
                raise SharingError(
                    f"{place_name(place)} {verb} the parameters of a place that has no spec.",
                    node=place_name(place),
                    quantizer=_owner(place),
                    expected="a place that is annotated with a spec",
                    got=place_name(source),
                    remedy="annotate that place, too, or give this one a spec of its own",
                )


def _check_circles(specs: dict[EdgeOrNode, AnySpec]) -> None:
    """Whoever follows the sources of a place comes to an end.

    What is joined implicitly has equal specs, and so equal sources: it closes no circle of its own.
    """
    try:
        graphlib.TopologicalSorter({place: _sources(spec) for place, spec in specs.items()}).prepare()
    except graphlib.CycleError as error:
        circle: list[EdgeOrNode] = error.args[1][:0:-1]  # was from source to user, one of them twice
        rank = {place: number for number, place in enumerate(specs)}
        start = circle.index(min(circle, key=rank.__getitem__))
        chain = (*circle[start:], *circle[: start + 1])
        raise SharingError(
            "These places take their parameters from each other in a circle, and none has any of its own.",
            node=" → ".join(f"({place_name(p)})" if isinstance(p, tuple) else p.name for p in chain),
            quantizer=", ".join(dict.fromkeys(map(_owner, chain))),
            expected="one place with a spec of its own",
            got=" | ".join(dict.fromkeys(type(specs[place]).__name__ for place in chain)),
            remedy="give one of them a QuantizationSpec",
        ) from error


def _check_dynamic(groups: tuple[Group, ...], spec_of: dict[EdgeOrNode, OwnSpec]) -> None:
    """Parameters that are found when the model runs belong to one tensor, and to nothing else."""

    def refuse(place: EdgeOrNode, source: EdgeOrNode, deed: str) -> SharingError:
        return SharingError(
            f"{place_name(place)} {deed} dynamic parameters, which each tensor has for itself.",
            node=place_name(place),
            quantizer=_owner(place),
            expected="a place whose parameters are known before the model runs",
            got=f"{place_name(source)}: {spec_of[source]}",
            remedy="give this place a spec of its own, or that one is_dynamic=False",
        )

    for group in groups:
        first = group.places[0]
        if _is_dynamic(group.spec):
            for place in group.places:
                if producer_of(place) is not producer_of(first):
                    raise refuse(place, first, "shares")
        for source in _sources(group.spec):
            if _is_dynamic(spec_of[source]):
                raise refuse(first, source, "is derived from")


def _is_dynamic(spec: OwnSpec) -> bool:
    return isinstance(spec, QuantizationSpec) and spec.is_dynamic


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
    (found,) = (specs[place] for place in members if not isinstance(specs[place], SharedQuantizationSpec))
    assert not isinstance(found, SharedQuantizationSpec)
    return found


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
