"""Recording what was decided: the ledger of an annotated model, region by region."""

from __future__ import annotations

from torch.fx import Node

from torchquilt.annotation import annotation_of
from torchquilt.graph.bodies import Region, call_of
from torchquilt.graph.cost import multiply_adds, stored_tensors
from torchquilt.graph.decomposition import decomposed_from, explanation
from torchquilt.graph.scope import module_path
from torchquilt.graph.values import constant_nodes, overload_name
from torchquilt.ledger import Boundary, Ledger, Reason, Row, Tensor
from torchquilt.pattern import Reject
from torchquilt.pt2e.groups import Group
from torchquilt.spec import EdgeOrNode


def make_ledger(
    groups: tuple[tuple[Region, tuple[Group, ...]], ...],
    why_not: dict[Node, tuple[tuple[str, Reject], ...]],
    problems: tuple[str, ...] = (),
) -> Ledger:
    """The ledger of an annotated model, from the groups of its regions and from what was rejected."""
    rows: list[Row] = []
    boundaries: list[Boundary] = []
    first = 0
    for region, found in groups:
        writer = _RegionLedger(region, found, first)
        rows += writer.rows(why_not)
        boundaries += writer.boundaries()
        first += len(found)
    return Ledger(tuple(rows), tuple(boundaries), problems)


def _reasons(node: Node, rejected: tuple[tuple[str, Reject], ...]) -> tuple[Reason, ...]:
    """Why a node stays in float, the most telling first."""
    reasons = tuple(
        Reason(quantizer, reject.code, reject.text, reject.rule, reject.asked)
        for quantizer, reject in rejected
    )
    if any(reason.code != "not_annotated" for reason in reasons):
        return reasons
    own = _reason_of_itself(node)
    return (own, *reasons) if own.code != "unsupported_op" or not reasons else reasons


def _reason_of_itself(node: Node) -> Reason:
    """Why a node stays in float of which no quantizer says anything."""
    if call_of(node) is not None:
        return Reason("", "control_flow", "it runs its bodies, whose operators have rows of their own")
    if decomposed_from(node):
        return Reason("", "decomposed", explanation(node))
    operator = overload_name(node) or str(node.target)
    if getattr(node.target, "namespace", None) == "higher_order":
        return Reason("", "body_not_entered", f"what {operator} runs inside is left as it is")
    return Reason("", "unsupported_op", f"no quantizer here has a row for {operator}")


class _RegionLedger:
    """What the ledger says of one region. Groups are numbered through the whole model, from ``first``."""

    def __init__(self, region: Region, groups: tuple[Group, ...], first: int) -> None:
        self.region = region
        self.group_of = {place: group for group in groups for place in group.places}
        self.number = {id(group): first + index for index, group in enumerate(groups)}
        self._constants = constant_nodes(region.module.graph)

    def rows(self, why_not: dict[Node, tuple[tuple[str, Reject], ...]]) -> list[Row]:
        """A row for each operator."""
        nodes = self.region.module.graph.nodes
        return [self._row(node, why_not.get(node, ())) for node in nodes if node.op == "call_function"]

    def _row(self, node: Node, rejected: tuple[tuple[str, Reject], ...]) -> Row:
        annotation = annotation_of(node)
        return Row(
            node=self.region.name_of(node),
            op=overload_name(node) or str(node.target),
            module=module_path(node),
            quantizer=annotation.quantizer if annotation else None,
            pattern=annotation.pattern if annotation else "",
            rule=annotation.rule if annotation else "",
            tensors=self._tensors(node),
            reasons=() if annotation else _reasons(node, rejected),
            macs=multiply_adds(node),
            parameters=stored_tensors(node, self._constants),
        )

    def _tensors(self, node: Node) -> tuple[Tensor, ...]:
        places: list[tuple[str, EdgeOrNode]] = [(f"input {n.name}", (n, node)) for n in node.all_input_nodes]
        places.append(("output", node))
        found = ((name, self.group_of[place]) for name, place in places if place in self.group_of)
        return tuple(Tensor(name, str(group.spec), self.number[id(group)]) for name, group in found)

    def boundaries(self) -> list[Boundary]:
        """The edges at which a tensor that is quantized already is quantized anew."""
        return [
            self._boundary(*place, group)
            for place, group in self.group_of.items()
            if isinstance(place, tuple) and self.group_of.get(place[0], group) is not group
        ]

    def _boundary(self, producer: Node, user: Node, group: Group) -> Boundary:
        made, used = annotation_of(producer), annotation_of(user)
        assert made is not None
        assert used is not None
        return Boundary(
            self.region.name_of(producer),
            self.region.name_of(user),
            made.quantizer,
            str(self.group_of[producer].spec),
            used.quantizer,
            str(group.spec),
        )
