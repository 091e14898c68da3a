"""Sharing groups: tensors with one set of parameters, found over the whole graph, then settled once.

An edge leads from a node to one of its users; *edge or node* means such an edge or the output of a node. The
rule:

1. An edge or node that says :class:`torchquilt.SharedQuantizationSpec` is in the group of the edge or node
   that it names. It names one, so edges and nodes that share make a tree, and the spec of its root holds for
   all of them, whatever its kind and whatever their values are.
2. Edges and nodes of one tensor (an output and its edges) are joined where the specs that hold for them are
   equal, except for edges of a node that declines it (``allow_implicit_sharing=False``). An ordinary, a
   fixed and a derived spec are never equal.
3. So a group has one spec. A tensor that is made with one and used with another is in two groups, and is
   requantized where it is used.
4. The parameters of a group with a fixed spec are those that it says; no edge or node of it is observed.
5. The parameters of a group with a derived spec are computed, once, from those of the groups that hold
   its sources, which may be derived as well.
6. Edges and nodes that take their parameters from each other in a circle, by sharing or by derivation, have
   none: an error. So is a source that is not annotated.
7. Dynamic parameters are found for each tensor by itself, when the model runs. Sharing them between
   tensors, and deriving from them, are errors.

None of this depends on the order of nodes, nor on that in which annotations were written.
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterable

import attrs
from torch.fx import Graph, Node

from torchquilt._internal.connected import connected
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
    """Edges and nodes with one set of parameters, in graph order, and the spec that holds for them."""

    spec: OwnSpec
    members: tuple[EdgeOrNode, ...]


def producer_of(edge_or_node: EdgeOrNode) -> Node:
    """The node whose value stands at an edge or node."""
    return edge_or_node[0] if isinstance(edge_or_node, tuple) else edge_or_node


def edge_name(edge_or_node: EdgeOrNode) -> str:
    """``conv2d`` for an output, ``relu → conv2d`` for an edge."""
    return (
        f"{edge_or_node[0].name} → {edge_or_node[1].name}"
        if isinstance(edge_or_node, tuple)
        else edge_or_node.name
    )


def find_groups(graph: Graph) -> tuple[Group, ...]:
    """The groups of an annotated graph, in the order of their first edge or node.

    Raises:
        SharingError: parameters that are shared with or derived from an edge or node without a spec, from one
            that has none of its own in the end, or from one whose parameters are dynamic.
    """
    specs = _annotated_specs(graph)
    _check_sources(specs)
    _check_selves(specs)
    _check_circles(specs)
    links: list[tuple[EdgeOrNode, EdgeOrNode]] = [
        (edge_or_node, spec.edge_or_node)
        for edge_or_node, spec in specs.items()
        if isinstance(spec, SharedQuantizationSpec)
    ]
    root_spec: dict[EdgeOrNode, OwnSpec] = {}
    for members in connected(specs, links):
        root_spec.update(dict.fromkeys(members, _root_spec(members, specs)))
    for same_tensor in _members_by_tensor(specs):
        first_with: dict[OwnSpec, EdgeOrNode] = {}
        links += [(first_with.setdefault(root_spec[one], one), one) for one in same_tensor]
    groups = tuple(Group(root_spec[members[0]], members) for members in connected(specs, links))
    _check_dynamic(groups, root_spec)
    return groups


def _annotated_specs(graph: Graph) -> dict[EdgeOrNode, AnySpec]:
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
    """The edges and nodes from which a spec takes its parameters."""
    if isinstance(spec, SharedQuantizationSpec):
        return (spec.edge_or_node,)
    return spec.derived_from if isinstance(spec, DerivedQuantizationSpec) else ()


def _check_sources(specs: dict[EdgeOrNode, AnySpec]) -> None:
    """Every edge or node that parameters are taken from is annotated itself."""
    for edge_or_node, spec in specs.items():
        for source in _sources(spec):
            if source not in specs:
                verb = "shares" if isinstance(spec, SharedQuantizationSpec) else "derives"
                raise SharingError(
                    f"{edge_name(edge_or_node)} {verb} the parameters of an edge or node that has no spec.",
                    node=edge_name(edge_or_node),
                    quantizer=_owner(edge_or_node),
                    expected="an edge or node that is annotated with a spec",
                    got=edge_name(source),
                    remedy="annotate that edge or node, too, or give this one a spec of its own",
                )


def _check_selves(specs: dict[EdgeOrNode, AnySpec]) -> None:
    """Refuse circles of one: a quantizer lets inputs share parameters, and both are the same tensor."""
    for edge_or_node, spec in specs.items():
        if edge_or_node in _sources(spec):
            raise SharingError(
                "An edge or node takes its parameters from itself.",
                node=edge_name(edge_or_node),
                quantizer=_owner(edge_or_node),
                expected="a spec of its own, or another edge or node to take parameters from",
                got=spec,
                remedy="give it a QuantizationSpec; what reads one tensor twice has one edge for both inputs",
            )


def _check_circles(specs: dict[EdgeOrNode, AnySpec]) -> None:
    """Refuse sources of edges and nodes that lead round in a circle.

    What is joined implicitly has equal specs, and so equal sources: it closes no circle of its own.
    """
    try:
        graphlib.TopologicalSorter(
            {edge_or_node: _sources(spec) for edge_or_node, spec in specs.items()}
        ).prepare()
    except graphlib.CycleError as error:
        circle: list[EdgeOrNode] = error.args[1][:0:-1]  # was from source to user, one of them twice
        rank = {edge_or_node: number for number, edge_or_node in enumerate(specs)}
        start = circle.index(min(circle, key=rank.__getitem__))
        chain = (*circle[start:], *circle[: start + 1])
        raise SharingError(
            "These edges and nodes take their parameters from each other in a circle.",
            node=" → ".join(f"({edge_name(p)})" if isinstance(p, tuple) else p.name for p in chain),
            quantizer=", ".join(dict.fromkeys(map(_owner, chain))),
            expected="one edge or node with a spec of its own",
            got=" | ".join(dict.fromkeys(type(specs[edge_or_node]).__name__ for edge_or_node in chain)),
            remedy="give one of them a QuantizationSpec",
        ) from error


def _check_dynamic(groups: tuple[Group, ...], spec_of: dict[EdgeOrNode, OwnSpec]) -> None:
    """Parameters that are found when the model runs belong to one tensor, and to nothing else."""

    def refuse(edge_or_node: EdgeOrNode, source: EdgeOrNode, deed: str) -> SharingError:
        return SharingError(
            f"{edge_name(edge_or_node)} {deed} dynamic parameters, which each tensor has for itself.",
            node=edge_name(edge_or_node),
            quantizer=_owner(edge_or_node),
            expected="an edge or node whose parameters are known before the model runs",
            got=f"{edge_name(source)}: {spec_of[source]}",
            remedy="give this edge or node a spec of its own, or that one is_dynamic=False",
        )

    for group in groups:
        first = group.members[0]
        if _is_dynamic(group.spec):
            for edge_or_node in group.members:
                if producer_of(edge_or_node) is not producer_of(first):
                    raise refuse(edge_or_node, first, "shares")
        for source in _sources(group.spec):
            if _is_dynamic(spec_of[source]):
                raise refuse(first, source, "is derived from")


def _is_dynamic(spec: OwnSpec) -> bool:
    return isinstance(spec, QuantizationSpec) and spec.is_dynamic


def _members_by_tensor(specs: Iterable[EdgeOrNode]) -> Iterable[list[EdgeOrNode]]:
    """The edges and nodes of each tensor that may be joined because they are the same tensor."""
    by_producer: dict[Node, list[EdgeOrNode]] = {}
    for edge_or_node in specs:
        if isinstance(edge_or_node, tuple):
            annotation = annotation_of(edge_or_node[1])
            if annotation is not None and not annotation.allow_implicit_sharing:
                continue
        by_producer.setdefault(producer_of(edge_or_node), []).append(edge_or_node)
    return by_producer.values()


def _root_spec(members: tuple[EdgeOrNode, ...], specs: dict[EdgeOrNode, AnySpec]) -> OwnSpec:
    """The spec of the one edge or node of a group that does not point at another."""
    (found,) = (
        specs[edge_or_node]
        for edge_or_node in members
        if not isinstance(specs[edge_or_node], SharedQuantizationSpec)
    )
    assert not isinstance(found, SharedQuantizationSpec)
    return found


def _owner(edge_or_node: EdgeOrNode) -> str:
    annotation = annotation_of(edge_or_node[1] if isinstance(edge_or_node, tuple) else edge_or_node)
    assert annotation is not None  # the spec stands in it
    return annotation.quantizer or "unnamed"
