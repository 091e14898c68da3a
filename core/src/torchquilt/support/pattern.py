"""Small trees of operators with roles, and the answer of matching one: a Match or a Reject.

A pattern reads operator overloads and data flow, nothing else, so it works the same on strict and
non-strict exports and on programs that were saved and loaded. Matching never writes to the graph.

Importing this module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import attrs

from torchquilt.errors import PatternError
from torchquilt.graph.node_values import is_constant, overload_name
from torchquilt.reasons import rank_of
from torchquilt.support.operators import Operator
from torchquilt.support.parts import Part, Value, part

if TYPE_CHECKING:
    from torch.fx import Node


@attrs.frozen
class Reject:
    """Reason for which something is not done. A value, so that it can be collected, compared and shown.

    Args:
        code: stable code for programs, such as ``used_elsewhere`` or ``constraint:rank``.
        nodes: the nodes it is about.
        text: one sentence for people.
        rule: the rule that decides for the first of the nodes, in words; empty where none does.
        asked: what it asks for, likewise.
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
    """Operators of a graph that a pattern matches.

    Args:
        pattern: what matched.
        nodes: one node for each operator of the pattern that is there, in order of data flow.
        operands: ``(input node, user node, role)`` for each tensor that enters the match and has a
            role, in order of arguments; a tensor that is used twice stands twice.
        scalars: ``(node, position, value)`` for each Python number that stands where a tensor of a
            role could stand (``x * 0.5``).
    """

    pattern: OperatorPattern
    nodes: tuple[Node, ...]
    operands: tuple[tuple[Node, Node, str], ...]
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

    def inputs(self, role: str) -> tuple[Node, ...]:
        """The nodes that enter the match in this role."""
        return tuple(node for node, _, found in self.operands if found == role)

    def is_constant(self, node: Node) -> bool:
        """Whether a node of the graph is computed from stored tensors alone."""
        return is_constant(node) if self._constants is None else node in self._constants


#: Operators whose two inputs may change places.
_COMMUTATIVE = ("add", "mul")
#: Operators that may multiply one of their inputs. A part that says what both are means them as they are.
_WITH_ALPHA = ("add", "sub", "rsub")


@attrs.frozen
class OperatorPattern:
    """A tree of operators, most often a chain in which each one is used by the next one alone.

    Args:
        name: unique within a table, for example ``conv2d_relu``.
        root: the last operator, with what it reads. See :meth:`of` and :meth:`tree`.
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
            operators: them, in order of data flow.
            name: another name.
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

        For example ``x * sigmoid(x)``, and a convolution with what may stand behind it::

        x = Value()
        OperatorPattern.tree(part(MUL, x, part(SIGMOID, x), does_the_work=True), name="silu")
        norm = part(BATCH_NORM, part(CONV2D, does_the_work=True), is_optional=True)
        OperatorPattern.tree(part(RELU, part(ADD, norm, Value(name="skip"))))
        """
        return cls(name or "_".join(each.alternatives[0].name for each in root.all_parts()), root)

    @cached_property
    def operators(self) -> tuple[Operator, ...]:
        """The operators in order of data flow; the first one where there are alternatives."""
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
        """The overloads that a match starts at."""
        first = next(self.root.all_parts())
        return tuple(name for operator in first.alternatives for name in operator.overloads)

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """The roles that tensors around the pattern have, the output's last."""
        found: list[str] = []
        for each in self.root.all_parts():
            found += (value.role for value in each.inputs if isinstance(value, Value) and value.role)
            for operator in each.alternatives:
                found += (operand.role for operand in each.declared_by(operator))
        return tuple(dict.fromkeys((*found, "output_activation")))

    @cached_property
    def _variants(self) -> tuple[tuple[Part, tuple[Part, ...]], ...]:
        return tuple((root, root.path()) for root in self.root.variants() if isinstance(root, Part))

    def match(self, node: Node, constants: Container[Node] | None = None) -> Match | Reject:
        """Match with ``node`` as the first operator. Does not depend on how large the graph is.

        Args:
            node: the first operator.
            constants: the constant nodes of the graph, where they are known; the match answers from them.
        """
        rejected: Reject | None = None
        for root, path in self._variants:
            for found in _fits_at(root, path, node):
                if isinstance(found, _Found):
                    return Match(self, found.nodes, found.operands, found.scalars, constants, found.anchor)
                rejected = rejected or found
        assert rejected is not None
        return rejected


def _fits_at(root: Part, path: tuple[Part, ...], node: Node) -> Iterator[_Found | Reject]:
    """The ways in which a tree fits where its path starts at a node, and what does not fit."""
    for last in _ends_of(path, node):
        if isinstance(last, Reject):
            yield last
            continue
        for found in _fit(root, last, _Found()):
            yield found if isinstance(found, Reject) else found.read_inside() or found


def _ends_of(path: tuple[Part, ...], node: Node) -> Iterator[Node | Reject]:
    """The last nodes of paths that start at a node, where each is read by the next."""
    first, *rest = path
    if not first.is_called_by(node):
        yield _another(node, first)
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


def _another(node: Node, wanted: Part) -> Reject:
    return Reject("not_the_operator", (node,), f"{node.name} is not {wanted}")


def _used_elsewhere(node: Node, reader: Part) -> Reject:
    text = f"{node.name} is used by more than {reader}, so it cannot be fused with it"
    return Reject("used_elsewhere", (node, *node.users), text)


@attrs.frozen
class _Found:
    """Nodes, tensors and numbers of a tree, as far as it has been matched."""

    nodes: tuple[Node, ...] = ()
    operands: tuple[tuple[Node, Node, str], ...] = ()
    scalars: tuple[tuple[Node, int, int | float | complex], ...] = ()
    values: tuple[tuple[Value, Any], ...] = ()
    anchor: Node | None = None

    def with_part(self, each: Part, operator: Operator, node: Node) -> _Found:
        """This, and a node with the operands that its operator declares."""
        anchor = node if each.does_the_work else self.anchor
        found = attrs.evolve(self, nodes=(*self.nodes, node), anchor=anchor)
        for operand in each.declared_by(operator):
            value = _argument(node, operand.position, operand.keyword)
            for item in value if operand.is_list else (value,):
                found = found.with_operand(node, operand.position, operand.role, item)
        return found

    def with_value(self, value: Value, node: Node, position: int, given: Any) -> _Found | None:
        """This, and a tensor or number that enters; None where the value has been another one before."""
        known = next((held for held in self.values if held[0] == value), None)
        if known is None:
            found = attrs.evolve(self, values=(*self.values, (value, given)))
        elif known[1] is given or (isinstance(given, (int, float)) and known[1] == given):
            found = self
        else:
            return None
        return found.with_operand(node, position, value.role, given)

    def with_operand(self, node: Node, position: int, role: str, value: Any) -> _Found:
        """This, and what a node reads in a role."""
        if not role or value is None:
            return self
        if isinstance(value, (int, float, complex)):
            return attrs.evolve(self, scalars=(*self.scalars, (node, position, value)))
        return attrs.evolve(self, operands=(*self.operands, (value, node, role)))

    def read_inside(self) -> Reject | None:
        """Reject a tensor of the inside that enters as well, or that is used twice."""
        entering = (*(source for source, _, _ in self.operands), *(given for _, given in self.values))
        for index, node in enumerate(self.nodes):
            if any(node is given for given in (*entering, *self.nodes[:index])):
                text = f"{node.name} is read twice, so it cannot be fused with what reads it"
                return Reject("used_elsewhere", (node, *node.users), text)
        return None


def _fit(each: Part, node: Node, found: _Found) -> Iterator[_Found | Reject]:
    """Match a part with a node, and what is below it: each way in which it fits, and what does not fit."""
    operator = next((one for one in each.alternatives if overload_name(node) in one.overloads), None)
    if operator is None:
        yield _another(node, each)
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
    each: Part, node: Node, pairs: tuple[tuple[Part | Value | float, tuple[int, Any]], ...], found: _Found
) -> Iterator[_Found | Reject]:
    """Match what a node reads, one after the other; where one does not fit, others of those before may."""
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
    each: Part, node: Node, position: int, wanted: Part | Value | float, given: Any, found: _Found
) -> Iterator[_Found | Reject]:
    if isinstance(wanted, Part):
        if not hasattr(given, "users") or not wanted.is_called_by(given):
            yield _another(node, each)
        elif _reads(node, given) != 1 or (len(given.users) != 1 and not wanted.may_be_read_elsewhere):
            yield _used_elsewhere(given, each)
        else:
            yield from _fit(wanted, given, found)
    elif isinstance(wanted, Value):
        yield found.with_value(wanted, node, position, given) or _another(node, each)
    else:
        is_number = isinstance(given, (int, float)) and math.isclose(given, wanted, rel_tol=1e-6)
        yield found if is_number else _another(node, each)


def _reads(node: Node, given: Node) -> int:
    """How often an argument of a node is this tensor."""
    return sum(argument is given for argument in (*node.args, *node.kwargs.values()))


def _argument(node: Node, position: int, keyword: str = "") -> Any:
    return node.args[position] if position < len(node.args) else node.kwargs.get(keyword)
