"""Checks of a rewrite: it keeps the shape of the match, and changes no node around it.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs

from torchquilt.errors import QuantizerError
from torchquilt.quantizers.annotated_claim import AnnotatedClaim
from torchquilt.spec.annotation import annotation_of
from torchquilt.spec.qspec import EdgeOrNode
from torchquilt.support.pattern import Match

if TYPE_CHECKING:
    from torch.fx import Node


def failed(taken: AnnotatedClaim, error: Exception) -> QuantizerError:
    """The error for a rewrite that raised another one."""
    return taken.error(
        "failed",
        got=f"{type(error).__name__}: {error}",
        remedy="see the cause above; add a constraint to the row if it cannot rewrite every match",
    )


@attrs.frozen(eq=False)
class Surroundings:
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
    def of(cls, match: Match) -> Surroundings:
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

    def check_neighbours(self, taken: AnnotatedClaim) -> None:
        """Refuse a rewrite that changes the target of a neighbour, or erases an annotated neighbour."""
        for node, target in self.called:
            if node.target != target or (node._erased and annotation_of(node) is not None):
                names = ", ".join(each.name for each in self.match.nodes)
                raise taken.error(
                    "changes a node that is not of its match",
                    node=node,
                    expected=f"edits of {names}, and new nodes",
                    got=node.format_node() or f"{node.name}, erased",
                    remedy="let the pattern match that node, too, or put a new node beside the match",
                )

    def check_values(self, taken: AnnotatedClaim) -> None:
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


def _computed_shape(taken: AnnotatedClaim, node: Node) -> tuple[Any, ...]:
    from torchquilt.graph.edits import value_of_call

    if not node.all_input_nodes:
        return _shape(node)
    try:
        return _shape_of(value_of_call(node.target, node.args, node.kwargs))
    except Exception as error:
        raise failed(taken, error) from error


def _check_value(
    taken: AnnotatedClaim, node: Node, expected: tuple[Any, ...], found: tuple[Any, ...]
) -> None:
    pairs = zip(found, expected, strict=False)
    if len(found) != len(expected) or any(a != b and None not in (a, b) for a, b in pairs):
        raise taken.error(
            "returns another tensor",
            node=node,
            expected=_told(expected),
            got=_told(found),
            remedy="use write_as_another_shape within the match; its output keeps its shape",
        )


class Moves:
    """Edges and nodes that rewrites replaced, with the edge or node that replaces each."""

    def __init__(self) -> None:
        self._outputs: dict[Node, Node] = {}
        self._users: dict[tuple[Node, Node], Node] = {}

    def note(self, around: Surroundings) -> None:
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


def _told(shape: tuple[Any, ...]) -> str:
    dtype, *sizes = shape or ("no tensor",)
    return f"{dtype} {['?' if size is None else size for size in sizes]}"
