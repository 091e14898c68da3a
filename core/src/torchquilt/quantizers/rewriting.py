"""Rewriting: each claimed match is written in the form that its row wants, and annotated in that form.

Rewriting begins after all quantizers have made their claims, and touches claimed nodes alone. Then the rows
of the same table match the rewritten nodes again, within the claims of the same quantizer. So the annotation
belongs to the final form. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torchquilt.quantizers.annotated_claim import AnnotatedClaim, annotated_claims
from torchquilt.quantizers.reannotation import Reannotation
from torchquilt.quantizers.rewrite_checks import Moves, Surroundings, failed
from torchquilt.support.pattern import Match

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


def rewrite_claims(model: GraphModule) -> GraphModule:
    """Write each claimed match in the form that its row wants; changes ``model``.

    Rewrites run from the last operator to the first. A rewrite may put a node behind its operator, while the
    matches that read this operator still name the operator itself.

    Raises:
        QuantizerError: a rewrite failed, or wrote a form that no row of the table takes.
        ModelError: a node that a rewrite made breaks an invariant.
    """
    known = frozenset(model.graph.nodes)
    kept = annotated_claims(model)
    moves = Moves()
    written = {id(taken) for taken in reversed(kept) if _rewrite(model, taken, moves)}
    if written or any(taken.claim.match.scalars for taken in kept):
        changed = [
            taken
            for taken in kept
            if id(taken) in written or taken.claim.match.scalars or not taken.has_its_inputs
        ]
        Reannotation(model, changed, moves).run()
        _check_nodes(model, known, [taken for taken in kept if id(taken) in written])
    return model


def _rewrite(model: GraphModule, taken: AnnotatedClaim, moves: Moves) -> bool:
    """Write a claim in the form that its row wants. Returns whether that changed the match."""
    claim = taken.claim
    if not claim.row.rewrite:
        return False
    around = Surroundings.of(claim.match)
    before = _form(claim.match)
    try:
        returned = [rewrite(model, claim.match) for rewrite in claim.row.rewrite]
    except Exception as error:
        raise failed(taken, error) from error
    made = next((each for each in returned if each is not None and each is not model), None)
    if made is not None:
        raise taken.error(
            "returned something",
            expected="edits of the model that it receives, and None",
            got=f"{type(made).__module__}.{type(made).__qualname__}",
            remedy="edit in place, with write_as, call_before and call_behind",
        )
    around.check_neighbours(taken)
    if _form(claim.match) == before and not around.is_changed:
        return False
    around.check_values(taken)
    moves.note(around)
    return True


def _check_nodes(model: GraphModule, known: frozenset[Node], written: Iterable[AnnotatedClaim]) -> None:
    """Check the invariants at the nodes that rewrites made or wrote."""
    from torchquilt.graph.invariants import check_invariants

    nodes = {node for taken in written for node in taken.claim.match.nodes}
    nodes.update(node for node in model.graph.nodes if node not in known)
    if nodes:
        check_invariants(model, "rewrite_claims", nodes)


def _form(match: Match) -> tuple[object, ...]:
    return tuple((node.target, node.args, node.kwargs, tuple(node.users)) for node in match.nodes)
