"""Operator patterns: small trees of operators with roles. Matching one returns a Match or a Reject.

A pattern reads operator overloads and data flow alone. So strict exports, non-strict exports and loaded
programs all match alike. Matching never writes to the graph.

Importing this module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import attrs

from torchquilt.errors import PatternError
from torchquilt.graph.node_values import is_constant, overload_name
from torchquilt.reasons import rank_of
from torchquilt.spec.config import Role
from torchquilt.support.operators import Operator
from torchquilt.support.parts import Part, Value, part

if TYPE_CHECKING:
    from torch.fx import Node


@attrs.frozen
class Reject:
    """The reason why a match is not made or not claimed, as a value to collect, compare and show.

    Args:
        code: stable code for programs, such as ``used_elsewhere`` or ``constraint:rank``.
        nodes: the nodes it is about.
        text: one sentence for people.
        rule: the rule that decides for the first of the nodes, in words; empty if there is none.
        asked: the config that this rule asks for, in words; empty if there is none.
    """

    code: str
    nodes: tuple[Node, ...]
    text: str
    rule: str = ""
    asked: str = ""

    @property
    def weight(self) -> int:
        """Rank of the reason, see :data:`torchquilt.reasons.REASONS`: the larger, the more telling."""
        return rank_of(self.code)


@attrs.frozen
class Match:
    """Nodes of a graph that a pattern matches.

    Args:
        pattern: the pattern.
        nodes: the node of each operator that is present, in order of data flow.
        operands: ``(input node, user node, role)`` for each tensor that enters the match and has a
            role, in order of arguments; a tensor that enters twice is listed twice.
        scalars: ``(node, position, value)`` for each Python number in place of a tensor with a role
            (``x * 0.5``).
    """

    pattern: OperatorPattern
    nodes: tuple[Node, ...]
    operands: tuple[tuple[Node, Node, Role], ...]
    scalars: tuple[tuple[Node, int, int | float | complex], ...] = ()
    _constants: Container[Node] | None = attrs.field(default=None, eq=False, repr=False)
    _anchor: Node | None = attrs.field(default=None, eq=False, repr=False)

    @property
    def anchor(self) -> Node:
        """The node that does the work (the conv of pad + conv + relu)."""
        return self._anchor or self.nodes[self.pattern.anchor_index]

    @property
    def output(self) -> Node:
        """The last node, whose value leaves the match."""
        return self.nodes[-1]

    def inputs(self, role: Role) -> tuple[Node, ...]:
        """The nodes that enter the match in this role."""
        return tuple(node for node, _, found in self.operands if found == role)

    def is_constant(self, node: Node) -> bool:
        """Whether a node of the graph is computed from stored tensors alone."""
        return is_constant(node) if self._constants is None else node in self._constants


#: Operators whose two inputs may come in either order.
_COMMUTATIVE = ("add", "mul")
#: Operators that may multiply an input by ``alpha``. A part that lists both inputs means an alpha of 1.
_WITH_ALPHA = ("add", "sub", "rsub")


@attrs.frozen
class OperatorPattern:
    """A tree of operators. Most are chains: each operator is read by the next one alone.

    Args:
        name: unique within a table, for example ``conv2d_relu``.
        root: the last operator, with its inputs. See :meth:`of` and :meth:`tree`.
    """

    name: str
    root: Part = attrs.field(repr=False)

    @root.validator
    def _has_its_ends(self, _: object, root: Part) -> None:
        parts = tuple(root.all_parts())
        working = [each for each in parts if each.does_the_work]
        if len(working) != 1:
            raise PatternError(
                f"The pattern {self.name!r} has {len(working)} operators that do the work.",
                expected=f"does_the_work=True for one of {', '.join(map(str, parts))}",
                got=", ".join(map(str, working)) or "for none",
            )
        for variant in root.variants():
            left = tuple(variant.all_parts()) if isinstance(variant, Part) else ()
            has_first = bool(left) and left[0] == parts[0]
            missing = working[0] if has_first else parts[0]
            if not has_first or not any(each.does_the_work for each in left):
                raise PatternError(
                    f"The operator {missing} of the pattern {self.name!r} is optional.",
                    expected="the first operator and the one that does the work are always there",
                    got=f"is_optional=True for {missing}, or for what does not read it first",
                )

    @classmethod
    def of(cls, *operators: Operator, name: str = "", anchor_index: int = 0) -> OperatorPattern:
        """A chain that is named after its operators.

        Args:
            operators: the operators of the chain, in order of data flow.
            name: a name to use instead of theirs.
            anchor_index: index of the operator that does the work (1 for pad + conv).
        """
        if not 0 <= anchor_index < len(operators):
            raise PatternError(
                f"The pattern {name!r} has no operator, or none that does the work.",
                expected=f"at least one Operator, and 0 <= anchor_index < {len(operators)}",
                got=f"{len(operators)} operators, anchor_index={anchor_index}",
                remedy="OperatorPattern.of(LINEAR) or OperatorPattern.of(CONV2D, RELU)",
            )
        read: tuple[Part, ...] = ()
        for position, operator in enumerate(operators):
            read = (part(operator, *read, does_the_work=position == anchor_index),)
        return cls(name or "_".join(operator.name for operator in operators), *read)

    @classmethod
    def tree(cls, root: Part, *, name: str = "") -> OperatorPattern:
        """A pattern of any shape.

        For example ``x * sigmoid(x)``; and a convolution, an optional BatchNorm, an addition and a ReLU::

            x = Value()
            OperatorPattern.tree(part(MUL, x, part(SIGMOID, x), does_the_work=True), name="silu")
            norm = part(BATCH_NORM, part(CONV2D, does_the_work=True), is_optional=True)
            OperatorPattern.tree(part(RELU, part(ADD, norm, Value(name="skip"))))
        """
        return cls(name or "_".join(each.alternatives[0].name for each in root.all_parts()), root)

    @cached_property
    def operators(self) -> tuple[Operator, ...]:
        """The operators in order of data flow; of alternatives, the first."""
        return tuple(each.alternatives[0] for each in self.root.all_parts())

    @cached_property
    def anchor_index(self) -> int:
        """Index of the operator that does the work."""
        return [each.does_the_work for each in self.root.all_parts()].index(True)

    @property
    def working(self) -> Operator:
        """The operator that does the work."""
        return self.operators[self.anchor_index]

    @property
    def first_overloads(self) -> tuple[str, ...]:
        """Overloads that a match starts at: those of each part that reads no other part."""
        starts = (one for _, path in self._variants for one in path[0].alternatives)
        return tuple(dict.fromkeys(name for operator in starts for name in operator.overloads))

    @cached_property
    def roles(self) -> tuple[Role, ...]:
        """Roles of the tensors that enter and leave the pattern, that of the output last."""
        found: list[Role] = []
        for each in self.root.all_parts():
            found += (value.role for value in each.inputs if isinstance(value, Value) and value.role)
            for operator in each.alternatives:
                found += (operand.role for operand in each.declared_by(operator))
        return tuple(dict.fromkeys((*found, "output_activation")))

    @cached_property
    def _variants(self) -> tuple[tuple[Part, tuple[Part, ...]], ...]:
        roots = (root for root in self.root.variants() if isinstance(root, Part))
        return tuple((root, path) for root in roots for path in root.paths())

    def match(self, node: Node, constants: Container[Node] | None = None) -> Match | Reject:
        """Match the pattern where an operator of it stands. The size of the graph does not matter.

        Args:
            node: an operator that reads no other one of the pattern; of a chain the first one.
            constants: the constant nodes of the graph, if they are known, for :meth:`Match.is_constant`.
        """
        rejected: Reject | None = None
        for root, path in self._variants:
            if not path[0].is_called_by(node):
                continue
            for found in _matches_at(root, path, node):
                if isinstance(found, _PartialMatch):
                    return Match(self, found.nodes, found.operands, found.scalars, constants, found.anchor)
                rejected = rejected or found
        return rejected or _not_the_operator(node, self._variants[0][1][0])


def _matches_at(root: Part, path: tuple[Part, ...], node: Node) -> Iterator[_PartialMatch | Reject]:
    """Each match of a tree whose path starts at a node, and each rejection."""
    for last in _ends_of(path, node):
        if isinstance(last, Reject):
            yield last
            continue
        for found in _fit(root, last, _PartialMatch()):
            yield found if isinstance(found, Reject) else found.read_inside() or found


def _ends_of(path: tuple[Part, ...], node: Node) -> Iterator[Node | Reject]:
    """The last node of each path that starts at a node; each node on a path reads the one before."""
    first, *rest = path
    if not first.is_called_by(node):
        yield _not_the_operator(node, first)
    elif not rest:
        yield node
    else:
        readers = list(node.users)
        if first.may_be_read_elsewhere:
            readers = [reader for reader in readers if rest[0].is_called_by(reader)] or readers[:1]
        if not readers or (len(readers) > 1 and not first.may_be_read_elsewhere):
            yield _used_elsewhere(node, rest[0])
            return
        for reader in readers:
            yield from _ends_of(tuple(rest), reader)


def _not_the_operator(node: Node, wanted: Part) -> Reject:
    return Reject("not_the_operator", (node,), f"{node.name} is not {wanted}")


def _used_elsewhere(node: Node, reader: Part) -> Reject:
    text = f"{node.name} is used by more than {reader}, so it cannot be fused with it"
    return Reject("used_elsewhere", (node, *node.users), text)


@attrs.frozen
class _PartialMatch:
    """A partial match: the nodes, tensors and numbers that a tree has matched so far."""

    nodes: tuple[Node, ...] = ()
    operands: tuple[tuple[Node, Node, Role], ...] = ()
    scalars: tuple[tuple[Node, int, int | float | complex], ...] = ()
    values: tuple[tuple[Value, Any], ...] = ()
    anchor: Node | None = None

    def with_part(self, each: Part, operator: Operator, node: Node) -> _PartialMatch:
        """This match with one more node, and the operands that its operator declares."""
        anchor = node if each.does_the_work else self.anchor
        found = attrs.evolve(self, nodes=(*self.nodes, node), anchor=anchor)
        for operand in each.declared_by(operator):
            value = _argument(node, operand.position, operand.keyword)
            for item in value if operand.is_list else (value,):
                found = found.with_operand(node, operand.position, operand.role, item)
        return found

    def with_value(self, value: Value, node: Node, position: int, given: Any) -> _PartialMatch | None:
        """This match with a tensor or number for a value; None if the value already stands for another."""
        known = next((held for held in self.values if held[0] == value), None)
        if known is None:
            found = attrs.evolve(self, values=(*self.values, (value, given)))
        elif known[1] is given or (isinstance(given, (int, float)) and known[1] == given):
            found = self
        else:
            return None
        return found.with_operand(node, position, value.role, given)

    def with_operand(self, node: Node, position: int, role: Role | Literal[""], value: Any) -> _PartialMatch:
        """This match with a tensor or number that a node reads in a role."""
        if not role or value is None:
            return self
        if isinstance(value, (int, float, complex)):
            return attrs.evolve(self, scalars=(*self.scalars, (node, position, value)))
        return attrs.evolve(self, operands=(*self.operands, (value, node, role)))

    def read_inside(self) -> Reject | None:
        """Reject a match in which a node's output enters the match again, or in which a node occurs twice."""
        entering = (*(source for source, _, _ in self.operands), *(given for _, given in self.values))
        for index, node in enumerate(self.nodes):
            if any(node is given for given in (*entering, *self.nodes[:index])):
                text = f"{node.name} is read twice, so it cannot be fused with its readers"
                return Reject("used_elsewhere", (node, *node.users), text)
        return None


def _fit(each: Part, node: Node, found: _PartialMatch) -> Iterator[_PartialMatch | Reject]:
    """Match a part and its inputs with a node: yields each partial match, and each rejection."""
    operator = next((one for one in each.alternatives if overload_name(node) in one.overloads), None)
    if operator is None:
        yield _not_the_operator(node, each)
        return
    is_whole = len(each.inputs) == 2
    if is_whole and operator.name in _WITH_ALPHA and _argument(node, 2, "alpha") not in (None, 1):
        text = f"{node.name} multiplies one of its inputs with alpha={_argument(node, 2, 'alpha')}"
        yield Reject("not_the_operator", (node,), text)
        return
    keywords = {operand.position: operand.keyword for operand in operator.operands}
    arguments = [
        (index, _argument(node, index, keywords.get(index, ""))) for index in range(len(each.inputs))
    ]
    can_swap = is_whole and operator.name in _COMMUTATIVE
    for order in (arguments, arguments[::-1]) if can_swap else (arguments,):
        for fitted in _fit_inputs(each, node, tuple(zip(each.inputs, order, strict=True)), found):
            yield fitted if isinstance(fitted, Reject) else fitted.with_part(each, operator, node)


def _fit_inputs(
    each: Part,
    node: Node,
    pairs: tuple[tuple[Part | Value | float, tuple[int, Any]], ...],
    found: _PartialMatch,
) -> Iterator[_PartialMatch | Reject]:
    """Match the inputs of a node in turn. If one is rejected, try other matches of those before it."""
    if not pairs:
        yield found
        return
    (wanted, (position, given)), *rest = pairs
    for fitted in _fit_input(each, node, position, wanted, given, found):
        if isinstance(fitted, Reject):
            yield fitted
        else:
            yield from _fit_inputs(each, node, tuple(rest), fitted)


def _fit_input(
    each: Part, node: Node, position: int, wanted: Part | Value | float, given: Any, found: _PartialMatch
) -> Iterator[_PartialMatch | Reject]:
    if isinstance(wanted, Part):
        if not hasattr(given, "users") or not wanted.is_called_by(given):
            yield _not_the_operator(node, each)
        elif _times_read(node, given) != 1 or (len(given.users) != 1 and not wanted.may_be_read_elsewhere):
            yield _used_elsewhere(given, each)
        else:
            yield from _fit(wanted, given, found)
    elif isinstance(wanted, Value):
        yield found.with_value(wanted, node, position, given) or _not_the_operator(node, each)
    else:
        is_number = isinstance(given, (int, float)) and math.isclose(given, wanted, rel_tol=1e-6)
        yield found if is_number else _not_the_operator(node, each)


def _times_read(node: Node, given: Node) -> int:
    """Number of arguments of a node that are this tensor."""
    return sum(argument is given for argument in (*node.args, *node.kwargs.values()))


def _argument(node: Node, position: int, keyword: str = "") -> Any:
    return node.args[position] if position < len(node.args) else node.kwargs.get(keyword)
