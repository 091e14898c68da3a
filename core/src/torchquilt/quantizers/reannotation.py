"""Annotation of rewritten claims: the rows of the same table match the nodes of each final form.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from torchquilt.errors import QuantizerError
from torchquilt.graph.node_values import HELPS, WRITTEN_FOR, constant_nodes, overload_name, writes
from torchquilt.quantizers.annotated_claim import AnnotatedClaim
from torchquilt.quantizers.claim import Claim
from torchquilt.quantizers.rewrite_checks import Moves
from torchquilt.spec.annotation import ANNOTATION_KEY, annotate_node, annotation_of, renamed
from torchquilt.support.pattern import Match
from torchquilt.support.table import Sharing, SupportRow

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


class Reannotation:
    """Annotation of changed claims in their final form."""

    def __init__(self, model: GraphModule, changed: Iterable[AnnotatedClaim], moves: Moves) -> None:
        self._model = model
        self._moves = moves
        self._changed = tuple(changed)
        self._constants = set(constant_nodes(model.graph))
        self._taken = {node: taken for taken in self._changed for node in taken.claim.match.nodes}
        self._by_name = {node.name: taken for node, taken in self._taken.items()}
        self._helped = {node.name: node.meta[HELPS] for node in model.graph.nodes if HELPS in node.meta}
        self._renewed: set[int] = set()

    def run(self) -> None:
        """Remove the annotations of changed claims, and annotate the forms that they have now."""
        for taken in self._changed:
            for node, _ in taken.annotations:
                del node.meta[ANNOTATION_KEY]
        for node in list(self._model.graph.nodes):
            owner = self._owner(node)
            if owner is None:
                continue
            if writes(node) and (WRITTEN_FOR in node.meta or node not in self._taken):
                raise owner.error(
                    "writes into a tensor that others may read",
                    node=node,
                    expected="operators that return a new tensor",
                    got=node.format_node(),
                    remedy="call the operator that does not work in place",
                )
            if annotation_of(node) is None and self._annotate(node, owner):
                self._renewed.add(id(owner))
        for taken in self._changed:
            if not self._is_renewed(taken):
                raise self._why_not_renewed(taken)
        self._follow()

    def _is_renewed(self, taken: AnnotatedClaim) -> bool:
        """Whether the anchor of a claim is annotated, or, if it was erased, a node in its stead."""
        anchor = taken.claim.match.anchor
        return id(taken) in self._renewed if anchor._erased else annotation_of(anchor) is not None

    def _why_not_renewed(self, taken: AnnotatedClaim) -> QuantizerError:
        """The error for a claim without a form: of its own row, or of the one that wrote what it follows."""
        node = taken.claim.match.nodes[0]
        if taken.claim.row.sharing is Sharing.FOLLOWS_INPUT and not taken.claim.row.rewrite:
            owners = ((source, self._owner(source)) for source in node.all_input_nodes)
            for source, owner in owners:
                if owner is not None and owner.claim.row.rewrite and annotation_of(source) is None:
                    return owner.error(
                        "returns a tensor in float",
                        node=source,
                        expected=f"a quantized tensor, whose parameters {node.name} shares",
                        got=source.format_node(),
                        remedy="add a row for what the rewrite puts last, or let it put nothing there",
                    )
        return taken.error(
            "writes a form that no row of its table takes",
            expected="operators for which the table has rows, with the same config",
            got=taken.claim.match.anchor.format_node(),
            remedy=f"correct the rewrite, or add the row that it needs ({taken.claim.row.mode})",
        )

    def _owner(self, node: Node) -> AnnotatedClaim | None:
        """The claim that a node belongs to, or for which a rewrite made it."""
        if node in self._taken:
            return self._taken[node]
        name = node.name
        while name in self._helped and name not in self._by_name:
            name = self._helped[name]
        return self._by_name.get(name)

    def _annotate(self, node: Node, taken: AnnotatedClaim) -> bool:
        for claim in self._claims(node, taken):
            for each, annotation in claim.annotations(taken.quantizer, taken.author):
                annotate_node(each, annotation)
            return True
        return False

    def _claims(self, node: Node, taken: AnnotatedClaim) -> Iterator[Claim]:
        """Claims of the rows that take a match starting at a node."""
        for row in taken.rows.get(overload_name(node), ()):
            match = row.pattern.match(node, self._constants)
            if not isinstance(match, Match) or row.differences(taken.claim.config):
                continue
            if not all(taken.is_alike(self._owner(each)) for each in match.nodes):
                continue
            holds = all(constraint.holds(match) for constraint in row.constraints)
            if holds and _has_quantized_input(row, match):
                yield Claim(
                    self._with_tensors(row, match),
                    row,
                    taken.claim.rule,
                    taken.claim.config,
                    taken.claim.returns_float and row.may_return_float,
                )

    def _with_tensors(self, row: SupportRow, match: Match) -> Match:
        """The match, with constant tensors in place of its Python numbers; equal numbers share one."""
        from torchquilt.graph.edits import lift_scalar

        if not match.scalars:
            return match
        lifted: dict[object, Node] = {}
        for node, position, value in match.scalars:
            key = (type(value), value, node.meta["val"].dtype)
            if key in lifted:
                node.update_arg(position, lifted[key])
            else:
                lifted[key] = lift_scalar(self._model, node, position, value, before=min(match.nodes))
        self._constants.update(lifted.values())
        again = row.pattern.match(match.nodes[0], self._constants)
        assert isinstance(again, Match)
        return again

    def _follow(self) -> None:
        """Let annotations of other nodes name the edges and nodes that replace theirs."""
        own = {node for taken in self._changed for node in taken.claim.match.nodes}
        for node in self._model.graph.nodes:
            annotation = annotation_of(node)
            if annotation is not None and node not in own and self._owner(node) is None:
                node.meta[ANNOTATION_KEY] = renamed(annotation, node, self._moves.now)


def _has_quantized_input(row: SupportRow, match: Match) -> bool:
    """Whether the input of a match is quantized, if the row shares its parameters."""
    if row.sharing is not Sharing.FOLLOWS_INPUT:
        return True
    annotation = annotation_of(match.inputs("input_activation")[0])
    return annotation is not None and annotation.output_qspec is not None
