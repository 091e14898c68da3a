"""Recording what was decided: the ledger of an annotated model, region by region."""

from __future__ import annotations

from torch.fx import Node

from torchquilt.graph.cost import multiply_adds, stored_tensors
from torchquilt.graph.decomposition import decomposed_from, explanation
from torchquilt.graph.function_transforms import UNDER_A_TRANSFORM, transformed_nodes
from torchquilt.graph.module_scope import module_path
from torchquilt.graph.node_values import HELPS, asked_name, call_name, constant_nodes
from torchquilt.graph.subgraphs import Region, call_of
from torchquilt.graph.training_mode import is_random
from torchquilt.ledger.ledger import Ledger
from torchquilt.ledger.rows import Boundary, Reason, Row, Tensor
from torchquilt.pt2e.sharing_groups import Group
from torchquilt.spec.annotation import annotation_of
from torchquilt.spec.qspec import EdgeOrNode
from torchquilt.support.pattern import Reject


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


def _reasons(
    node: Node, rejected: tuple[tuple[str, Reject], ...], transformed: frozenset[Node]
) -> tuple[Reason, ...]:
    """Reasons for which a node stays in float, the most telling first."""
    reasons = tuple(
        Reason(quantizer, reject.code, reject.text, reject.rule, reject.asked)
        for quantizer, reject in rejected
    )
    if any(reason.code != "not_annotated" for reason in reasons):
        return reasons
    own = _reason_of_itself(node, transformed)
    return (own, *reasons) if own.code != "unsupported_op" or not reasons else reasons


def _reason_of_itself(node: Node, transformed: frozenset[Node]) -> Reason:
    """Reason for which a node stays in float where no quantizer gives one."""
    if node in transformed:
        return Reason("", "function_transform", f"{node.name} {UNDER_A_TRANSFORM}")
    if is_random(node):
        return Reason("", "random", f"{node.name} draws random numbers")
    if call_of(node) is not None:
        return Reason("", "control_flow", "it runs its subgraphs, whose operators have rows of their own")
    if decomposed_from(node):
        return Reason("", "decomposed", explanation(node))
    operator = call_name(node)
    if getattr(node.target, "namespace", None) == "higher_order":
        return Reason("", "subgraph_not_entered", f"what {operator} runs inside is left as it is")
    return Reason("", "unsupported_op", f"no quantizer here has a row for {operator}")


class _RegionLedger:
    """Ledger of one region. Groups are numbered through the whole model, from ``first``."""

    def __init__(self, region: Region, groups: tuple[Group, ...], first: int) -> None:
        self.region = region
        self.group_of = {edge_or_node: group for group in groups for edge_or_node in group.members}
        self.number = {id(group): first + index for index, group in enumerate(groups)}
        self._constants = constant_nodes(region.module.graph)
        self._by_name: dict[str, Node] = {node.name: node for node in region.module.graph.nodes}
        self._helpers: dict[Node, list[Node]] = {}
        for node in region.module.graph.nodes:
            if self._written(node) is not node:
                self._helpers.setdefault(self._written(node), []).append(node)
        self._transformed = transformed_nodes(region.module.graph)

    def rows(self, why_not: dict[Node, tuple[tuple[str, Reject], ...]]) -> list[Row]:
        """A row for each operator that the user wrote."""
        nodes = self.region.module.graph.nodes
        return [
            self._row(node, why_not.get(node, ()))
            for node in nodes
            if node.op == "call_function" and self._written(node) is node
        ]

    def _written(self, node: Node) -> Node:
        """The operator of the user's that a node is a part of: itself, or the one that it helps to write."""
        while (helped := self._by_name.get(node.meta.get(HELPS, ""))) is not None:
            node = helped
        return node

    def _row(self, node: Node, rejected: tuple[tuple[str, Reject], ...]) -> Row:
        annotation = annotation_of(node)
        parts = (*self._helpers.get(node, ()), node)
        forms = tuple((self.region.name_of(part), call_name(part)) for part in parts)
        op = asked_name(node) or call_name(node)
        return Row(
            node=self.region.name_of(node),
            op=op,
            module=module_path(node),
            quantizer=annotation.quantizer if annotation else None,
            pattern=annotation.pattern if annotation else "",
            rule=annotation.rule if annotation else "",
            tensors=self._tensors(parts),
            reasons=() if annotation else _reasons(node, rejected, self._transformed),
            macs=sum(map(multiply_adds, parts)),
            parameters=tuple(
                dict.fromkeys(one for part in parts for one in stored_tensors(part, self._constants))
            ),
            written_as=() if forms == ((self.region.name_of(node), op),) else forms,
        )

    def _tensors(self, parts: tuple[Node, ...]) -> tuple[Tensor, ...]:
        named_edges: list[tuple[str, EdgeOrNode]] = [
            (f"input {source.name}", (source, part))
            for part in parts
            for source in part.all_input_nodes
            if source not in parts
        ]
        named_edges.append(("output", parts[-1]))
        found = (
            (name, self.group_of[edge_or_node])
            for name, edge_or_node in named_edges
            if edge_or_node in self.group_of
        )
        return tuple(Tensor(name, str(group.spec), self.number[id(group)]) for name, group in found)

    def boundaries(self) -> list[Boundary]:
        """The edges at which a tensor that is quantized already is quantized anew."""
        return [
            self._boundary(*edge_or_node, group)
            for edge_or_node, group in self.group_of.items()
            if isinstance(edge_or_node, tuple) and self.group_of.get(edge_or_node[0], group) is not group
        ]

    def _boundary(self, producer: Node, user: Node, group: Group) -> Boundary:
        made, used = annotation_of(producer), annotation_of(user)
        assert made is not None
        assert used is not None
        return Boundary(
            self.region.name_of(self._written(producer)),
            self.region.name_of(self._written(user)),
            made.quantizer,
            str(self.group_of[producer].spec),
            used.quantizer,
            str(group.spec),
        )
