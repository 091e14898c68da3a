"""Rewriting: each claimed match is written in the form that its row wants, and annotated in that form.

Rewriting begins after all quantizers have made their claims, and touches claimed nodes alone. Then the rows
of the same table match the rewritten nodes again, within the claims of the same quantizer. So the annotation
belongs to the final form. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import attrs

from torchquilt.errors import QuantizerError
from torchquilt.graph.node_values import HELPS, WRITTEN_FOR, constant_nodes, overload_name, writes
from torchquilt.quantizers.matching import Claim, Rows
from torchquilt.spec.annotation import (
    ANNOTATION_KEY,
    QuantizationAnnotation,
    annotate_node,
    annotation_of,
    renamed,
)
from torchquilt.spec.qspec import EdgeOrNode
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

    def is_of(self, node: Node) -> bool:
        """Whether the claim ends at this node itself, and not at a node that this one was copied from."""
        return self.claim.match.output is node

    @property
    def is_annotated(self) -> bool:
        """Whether the nodes still have these annotations; a quantizer may have replaced them since."""
        return all(annotation_of(node) is annotation for node, annotation in self.annotations)

    @property
    def has_its_inputs(self) -> bool:
        """Whether its operators still read the tensors that they read when they were matched."""
        return all(source in user._input_nodes for source, user, _ in self.claim.match.operands)

    def is_alike(self, other: _AnnotatedClaim | None) -> bool:
        """Whether another claim comes from the same quantizer, with the same config."""
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
    found = [(node, node.meta.pop(_CLAIM_KEY, None)) for node in model.graph.nodes]
    kept = [taken for node, taken in found if taken and taken.is_of(node) and taken.is_annotated]
    moves = _Moves()
    written = {id(taken) for taken in reversed(kept) if _rewrite(model, taken, moves)}
    if written or any(taken.claim.match.scalars for taken in kept):
        changed = [
            taken
            for taken in kept
            if id(taken) in written or taken.claim.match.scalars or not taken.has_its_inputs
        ]
        _Reannotation(model, changed, moves).run()
        _check_nodes(model, known, [taken for taken in kept if id(taken) in written])
    return model


def _rewrite(model: GraphModule, taken: _AnnotatedClaim, moves: _Moves) -> bool:
    """Write a claim in the form that its row wants. Returns whether that changed the match."""
    claim = taken.claim
    if not claim.row.rewrite:
        return False
    around = _Surroundings.of(claim.match)
    before = _form(claim.match)
    try:
        returned = [rewrite(model, claim.match) for rewrite in claim.row.rewrite]
    except Exception as error:
        raise _failed(taken, error) from error
    made = next((each for each in returned if each is not None and each is not model), None)
    if made is not None:
        raise _returned(taken, made)
    around.check_neighbours(taken)
    if _form(claim.match) == before and not around.is_changed:
        return False
    around.check_values(taken)
    moves.note(around)
    return True


@attrs.frozen(eq=False)
class _Surroundings:
    """The neighbours of a match before it is rewritten, with their targets, inputs and users.

    Args:
        match: the match.
        shape: dtype and sizes of its output.
        called: each neighbour and its target.
        inputs: each reader of the output and the nodes that it reads.
        users: each node that the match reads and its users.
    """

    match: Match
    shape: tuple[Any, ...]
    called: tuple[tuple[Node, Any], ...]
    inputs: tuple[tuple[Node, tuple[Node, ...]], ...]
    users: tuple[tuple[Node, tuple[Node, ...]], ...]

    @classmethod
    def of(cls, match: Match) -> _Surroundings:
        """The surroundings of a match as they are now."""
        readers = tuple(match.output.users)
        sources = tuple(dict.fromkeys(source for source, _, _ in match.operands))
        return cls(
            match,
            _shape(match.output),
            tuple((node, node.target) for node in (*readers, *sources)),
            tuple((reader, tuple(reader._input_nodes)) for reader in readers),
            tuple((source, tuple(source.users)) for source in sources),
        )

    @property
    def is_changed(self) -> bool:
        """Whether a reader of the match reads another node, or an input of the match has another user."""
        return any(tuple(node._input_nodes) != before for node, before in self.inputs) or any(
            tuple(node.users) != before for node, before in self.users
        )

    def outputs(self) -> Iterator[Node]:
        """The nodes that the readers of the output read in its stead now, or the output itself."""
        for reader, before in self.inputs:
            if self.match.output in reader._input_nodes:
                yield self.match.output
            yield from (source for source in reader._input_nodes if source not in before)

    def check_neighbours(self, taken: _AnnotatedClaim) -> None:
        """Refuse a rewrite that changes the target of a neighbour, or erases an annotated neighbour."""
        for node, target in self.called:
            if node.target != target or (node._erased and annotation_of(node) is not None):
                raise _touched(taken, node)

    def check_values(self, taken: _AnnotatedClaim) -> None:
        """Refuse a rewrite that returns a tensor of another shape or dtype, or records a wrong one."""
        for node in self.match.nodes:
            if not node._erased and all("val" in source.meta for source in node.all_input_nodes):
                _check_value(taken, node, _shape(node), _computed_shape(taken, node))
        for node in self.outputs():
            _check_value(taken, node, self.shape, _shape(node))


def _shape(node: Node) -> tuple[Any, ...]:
    """Dtype and sizes of a tensor; a dynamic size is None."""
    return _shape_of(node.meta.get("val"))


def _shape_of(value: Any) -> tuple[Any, ...]:
    if not hasattr(value, "dtype"):
        return ()
    return (value.dtype, *(size if isinstance(size, int) else None for size in value.shape))


def _computed_shape(taken: _AnnotatedClaim, node: Node) -> tuple[Any, ...]:
    from torchquilt.graph.edits import value_of_call

    if not node.all_input_nodes:
        return _shape(node)
    try:
        return _shape_of(value_of_call(node.target, node.args, node.kwargs))
    except Exception as error:
        raise _failed(taken, error) from error


def _check_value(
    taken: _AnnotatedClaim, node: Node, expected: tuple[Any, ...], found: tuple[Any, ...]
) -> None:
    pairs = zip(found, expected, strict=False)
    if len(found) != len(expected) or any(a != b and None not in (a, b) for a, b in pairs):
        raise _another_value(taken, node, expected, found)


class _Moves:
    """Edges and nodes that rewrites replaced, with the edge or node that replaces each."""

    def __init__(self) -> None:
        self._outputs: dict[Node, Node] = {}
        self._users: dict[tuple[Node, Node], Node] = {}

    def note(self, around: _Surroundings) -> None:
        """Record the new readers and the new output of a rewritten match."""
        outputs = dict.fromkeys(around.outputs())
        if around.match.output not in outputs and len(outputs) == 1:
            (self._outputs[around.match.output],) = outputs
        before = dict(around.users)
        for source, user, _ in around.match.operands:
            new = [reader for reader in source.users if reader not in before[source]]
            if source not in user._input_nodes and len(new) == 1:
                (self._users[source, user],) = new

    def now(self, edge_or_node: EdgeOrNode) -> EdgeOrNode:
        """The edge or node that replaces this one, or this one."""
        if not isinstance(edge_or_node, tuple):
            return self._outputs.get(edge_or_node, edge_or_node)
        source, user = edge_or_node
        user = self._users.get(edge_or_node, user)
        return (source if source in user._input_nodes else self._outputs.get(source, source)), user


def _check_nodes(model: GraphModule, known: frozenset[Node], written: Iterable[_AnnotatedClaim]) -> None:
    """Check the invariants at the nodes that rewrites made or wrote."""
    from torchquilt.graph.invariants import check_invariants

    nodes = {node for taken in written for node in taken.claim.match.nodes}
    nodes.update(node for node in model.graph.nodes if node not in known)
    if nodes:
        check_invariants(model, "rewrite_claims", nodes)


def _form(match: Match) -> tuple[object, ...]:
    return tuple((node.target, node.args, node.kwargs, tuple(node.users)) for node in match.nodes)


class _Reannotation:
    """Annotation of changed claims in their final form."""

    def __init__(self, model: GraphModule, changed: Iterable[_AnnotatedClaim], moves: _Moves) -> None:
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
                raise _in_place(owner, node)
            if annotation_of(node) is None and self._annotate(node, owner):
                self._renewed.add(id(owner))
        for taken in self._changed:
            if not self._is_renewed(taken):
                raise self._why_not_renewed(taken)
        self._follow()

    def _is_renewed(self, taken: _AnnotatedClaim) -> bool:
        """Whether the anchor of a claim is annotated, or, if it was erased, a node in its stead."""
        anchor = taken.claim.match.anchor
        return id(taken) in self._renewed if anchor._erased else annotation_of(anchor) is not None

    def _why_not_renewed(self, taken: _AnnotatedClaim) -> QuantizerError:
        """The error for a claim without a form: of its own row, or of the one that wrote what it follows."""
        node = taken.claim.match.nodes[0]
        if taken.claim.row.sharing is Sharing.FOLLOWS_INPUT and not taken.claim.row.rewrite:
            owners = ((source, self._owner(source)) for source in node.all_input_nodes)
            for source, owner in owners:
                if owner is not None and owner.claim.row.rewrite and annotation_of(source) is None:
                    return _left_in_float(owner, source, node)
        return _not_taken(taken)

    def _owner(self, node: Node) -> _AnnotatedClaim | None:
        """The claim that a node belongs to, or for which a rewrite made it."""
        if node in self._taken:
            return self._taken[node]
        name = node.name
        while name in self._helped and name not in self._by_name:
            name = self._helped[name]
        return self._by_name.get(name)

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
            holds = all(constraint.holds(match) for constraint in row.constraints)
            if holds and _has_quantized_input(row, match):
                yield Claim(self._with_tensors(row, match), row, taken.claim.rule, taken.claim.config)

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


def _failed(taken: _AnnotatedClaim, error: Exception) -> QuantizerError:
    return QuantizerError(
        f"The rewrite of the row {taken.claim.row.pattern.name} failed.",
        node=taken.claim.match.anchor,
        quantizer=taken.quantizer,
        got=f"{type(error).__name__}: {error}",
        remedy="see the cause above; add a constraint to the row if it cannot rewrite every match",
    )


def _returned(taken: _AnnotatedClaim, made: object) -> QuantizerError:
    return QuantizerError(
        f"The rewrite of the row {taken.claim.row.pattern.name} returned something.",
        node=taken.claim.match.anchor,
        quantizer=taken.quantizer,
        expected="edits of the model that it receives, and None",
        got=f"{type(made).__module__}.{type(made).__qualname__}",
        remedy="edit in place, with write_as, call_before and call_behind",
    )


def _touched(taken: _AnnotatedClaim, node: Node) -> QuantizerError:
    return QuantizerError(
        f"The rewrite of the row {taken.claim.row.pattern.name} changes a node that is not of its match.",
        node=node,
        quantizer=taken.quantizer,
        expected=f"edits of {', '.join(each.name for each in taken.claim.match.nodes)}, and new nodes",
        got=node.format_node() or f"{node.name}, erased",
        remedy="let the pattern match that node, too, or put a new node before or behind the match",
    )


def _another_value(
    taken: _AnnotatedClaim, node: Node, expected: tuple[Any, ...], found: tuple[Any, ...]
) -> QuantizerError:
    return QuantizerError(
        f"The rewrite of the row {taken.claim.row.pattern.name} returns another tensor.",
        node=node,
        quantizer=taken.quantizer,
        expected=_told(expected),
        got=_told(found),
        remedy="write_as_another_shape records a new shape within the match; what leaves it keeps its own",
    )


def _told(shape: tuple[Any, ...]) -> str:
    dtype, *sizes = shape or ("no tensor",)
    return f"{dtype} {['?' if size is None else size for size in sizes]}"


def _in_place(taken: _AnnotatedClaim, node: Node) -> QuantizerError:
    return QuantizerError(
        f"The rewrite of the row {taken.claim.row.pattern.name} writes into a tensor that others may read.",
        node=node,
        quantizer=taken.quantizer,
        expected="operators that return a new tensor",
        got=node.format_node(),
        remedy="call the operator that does not work in place",
    )


def _left_in_float(taken: _AnnotatedClaim, node: Node, reader: Node) -> QuantizerError:
    return QuantizerError(
        f"The form that the row {taken.claim.row.pattern.name} writes returns a tensor in float.",
        node=node,
        quantizer=taken.quantizer,
        expected=f"a quantized tensor, whose parameters {reader.name} shares",
        got=node.format_node(),
        remedy="add a row for what the rewrite puts last, or let it put nothing there",
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
