"""Rewriting: each claimed match is written in the form that its row wants, and annotated in that form.

Rewriting begins after all quantizers have made their claims, and touches claimed nodes alone. Then the rows
of the same table match the rewritten nodes again, within the claims of the same quantizer. So the annotation
belongs to the final form. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import attrs

from torchquilt.errors import QuantizerError
from torchquilt.graph.node_values import HELPS, constant_nodes, overload_name
from torchquilt.quantizers.matching import Claim, Rows
from torchquilt.spec.annotation import (
    ANNOTATION_KEY,
    QuantizationAnnotation,
    annotate_node,
    annotation_of,
    with_edges,
)
from torchquilt.support.pattern import Match
from torchquilt.support.table import Sharing, SupportRow

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

    from torchquilt.quantizers.base import Quantizer

#: Key in ``node.meta`` of the last node of a claimed match: its claim, until :func:`rewrite_claims` reads it.
_CLAIM_KEY = "torchquilt_taken"


@attrs.frozen(eq=False)
class _AnnotatedClaim:
    """A claim, the quantizer that made it, and the annotations that the core wrote for it."""

    claim: Claim
    rows: Rows
    quantizer: str
    author: int
    annotations: tuple[tuple[Node, QuantizationAnnotation], ...]

    @property
    def is_annotated(self) -> bool:
        """Whether the nodes still have these annotations; a quantizer may have replaced them since."""
        return all(annotation_of(node) is annotation for node, annotation in self.annotations)

    @property
    def has_its_inputs(self) -> bool:
        """Whether its operators still read the tensors that they read when they were matched."""
        return all(source in user._input_nodes for source, user, _ in self.claim.match.operands)

    def is_alike(self, other: _AnnotatedClaim | None) -> bool:
        """Whether the same quantizer made another claim with the same config."""
        return other is not None and other.author == self.author and other.claim.config == self.claim.config


def annotate_claim(claim: Claim, rows: Rows, quantizer: Quantizer) -> None:
    """Annotate a claim in the name of a quantizer, and keep it for :func:`rewrite_claims`."""
    annotations = claim.annotations(quantizer.name, id(quantizer))
    for node, annotation in annotations:
        annotate_node(node, annotation)
    taken = _AnnotatedClaim(claim, rows, quantizer.name, id(quantizer), annotations)
    claim.match.output.meta[_CLAIM_KEY] = taken


def rewrite_claims(model: GraphModule) -> GraphModule:
    """Write each claimed match in the form that its row wants; changes ``model``.

    Rewrites run from the last operator to the first. A rewrite may put a node behind its operator, while the
    matches that read this operator still name the operator itself.

    Raises:
        QuantizerError: a rewrite failed, or wrote a form that no row of the table takes.
        ModelError: a node that a rewrite made breaks an invariant.
    """
    known = frozenset(model.graph.nodes)
    found = [taken for node in model.graph.nodes if (taken := node.meta.pop(_CLAIM_KEY, None)) is not None]
    kept = [taken for taken in found if taken.is_annotated]
    written = {id(taken) for taken in reversed(kept) if _rewrite(model, taken)}
    if written or any(taken.claim.match.scalars for taken in kept):
        changed = [
            taken
            for taken in kept
            if id(taken) in written or taken.claim.match.scalars or not taken.has_its_inputs
        ]
        _Reannotation(model, changed).run()
        _check_new_nodes(model, known)
    return model


def _rewrite(model: GraphModule, taken: _AnnotatedClaim) -> bool:
    """Write a claim in the form that its row wants. Returns whether that changed the match."""
    claim = taken.claim
    before = _form(claim.match)
    try:
        for rewrite in claim.row.rewrite:
            rewrite(model, claim.match)
    except Exception as error:
        raise _failed(taken, error) from error
    return bool(claim.row.rewrite) and _form(claim.match) != before


def _check_new_nodes(model: GraphModule, known: frozenset[Node]) -> None:
    from torchquilt.graph.invariants import check_invariants

    new = [node for node in model.graph.nodes if node not in known]
    if new:
        check_invariants(model, "rewrite_claims", frozenset(new))


def _form(match: Match) -> tuple[object, ...]:
    return tuple((node.target, node.args, node.kwargs) for node in match.nodes)


class _Reannotation:
    """Annotation of changed claims in their final form."""

    def __init__(self, model: GraphModule, changed: Iterable[_AnnotatedClaim]) -> None:
        self._model = model
        self._changed = tuple(changed)
        self._constants = set(constant_nodes(model.graph))
        self._taken = {node: taken for taken in self._changed for node in taken.claim.match.nodes}
        self._by_name = {node.name: taken for node, taken in self._taken.items()}

    def run(self) -> None:
        """Remove the annotations of changed claims, and annotate the forms that they have now."""
        for taken in self._changed:
            for node, _ in taken.annotations:
                del node.meta[ANNOTATION_KEY]
        renewed = set()
        for node in list(self._model.graph.nodes):
            owner = self._owner(node)
            if owner is not None and annotation_of(node) is None and self._annotate(node, owner):
                renewed.add(id(owner))
        for taken in self._changed:
            nodes = taken.claim.match.nodes
            if id(taken) not in renewed and all(annotation_of(node) is None for node in nodes):
                raise _not_taken(taken)
        self._follow_moved_inputs()

    def _owner(self, node: Node) -> _AnnotatedClaim | None:
        return self._taken.get(node) or self._by_name.get(node.meta.get(HELPS, ""))

    def _annotate(self, node: Node, taken: _AnnotatedClaim) -> bool:
        for claim in self._claims(node, taken):
            for each, annotation in claim.annotations(taken.quantizer, taken.author):
                annotate_node(each, annotation)
            return True
        return False

    def _claims(self, node: Node, taken: _AnnotatedClaim) -> Iterator[Claim]:
        """Claims of the rows that take a match starting at a node."""
        for row in taken.rows.get(overload_name(node), ()):
            match = row.pattern.match(node, self._constants)
            if not isinstance(match, Match) or row.differences(taken.claim.config):
                continue
            if not all(taken.is_alike(self._owner(each)) for each in match.nodes):
                continue
            if all(constraint.holds(match) for constraint in row.constraints) and _has_quantized_input(
                row, match
            ):
                yield Claim(self._with_tensors(row, match), row, taken.claim.rule, taken.claim.config)

    def _with_tensors(self, row: SupportRow, match: Match) -> Match:
        """The match, with constant tensors in place of its Python numbers."""
        from torchquilt.graph.edits import lift_scalar

        if not match.scalars:
            return match
        for node, position, value in match.scalars:
            lift_scalar(self._model, node, position, value)
            self._constants.update(source for source in node.all_input_nodes if source.op == "get_attr")
        again = row.pattern.match(match.nodes[0], self._constants)
        assert isinstance(again, Match)
        return again

    def _follow_moved_inputs(self) -> None:
        """Let annotations name the nodes that rewrites put behind the inputs of other operators."""
        behind = {node.meta[HELPS]: node for node in self._model.graph.nodes if HELPS in node.meta}
        annotated = [(node, found) for node in self._model.graph.nodes if (found := annotation_of(node))]
        moved = {
            (source, node): (behind[source.name], node)
            for node, annotation in annotated
            for source in annotation.input_qspec_map
            if source not in node._input_nodes and source.name in behind
        }
        for node, annotation in annotated if moved else ():
            node.meta[ANNOTATION_KEY] = with_edges(annotation, node, moved)


def _has_quantized_input(row: SupportRow, match: Match) -> bool:
    """Whether the input of a match is quantized, if the row shares its parameters."""
    if row.sharing is not Sharing.FOLLOWS_INPUT:
        return True
    annotation = annotation_of(match.inputs("input_activation")[0])
    return annotation is not None and annotation.output_qspec is not None


def _failed(taken: _AnnotatedClaim, error: Exception) -> QuantizerError:
    return QuantizerError(
        f"The rewrite of the row {taken.claim.row.pattern.name} failed.",
        node=taken.claim.match.anchor,
        quantizer=taken.quantizer,
        got=f"{type(error).__name__}: {error}",
        remedy="see the cause above; add a constraint to the row if it cannot rewrite every match",
    )


def _not_taken(taken: _AnnotatedClaim) -> QuantizerError:
    row, node = taken.claim.row, taken.claim.match.anchor
    return QuantizerError(
        f"The row {row.pattern.name} writes a form that no row of its table takes.",
        node=node,
        quantizer=taken.quantizer,
        expected="a rewrite into operators for which the table has rows, with the same config",
        got=node.format_node(),
        remedy=f"correct the rewrite of the row, or add the row that it needs ({row.mode})",
    )
