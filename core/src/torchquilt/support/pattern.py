"""Small trees of operators with roles, and the answer of matching one: a Match or a Reject.

A pattern reads operator overloads and data flow, nothing else, so it works the same on strict and
non-strict exports and on programs that were saved and loaded. Matching never writes to the graph.

Importing this module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
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
        for each in (parts[0], *working):
            if each.is_optional:
                raise PatternError(
                    f"The operator {each} of the pattern {self.name!r} is optional.",
                    expected="the first operator and the one that does the work are always there",
                    got=f"is_optional=True for {each}",
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
            found += (operand.role for operand in each.declared)
        return tuple(dict.fromkeys((*found, "output_activation")))

    @cached_property
    def _variants(self) -> tuple[tuple[Part, tuple[Part, ...]], ...]:
        return tuple((root, root.path()) for root in self.root.variants())

    def match(self, node: Node, constants: Container[Node] | None = None) -> Match | Reject:
        """Match with ``node`` as the first operator. Costs as much as the tree is large.

        Args:
            node: the first operator.
            constants: the constant nodes of the graph, where they are known; the match answers from them.
        """
        rejected: list[Reject] = []
        for root, path in self._variants:
            last = _end_of(path, node)
            found = _Found()
            trouble = last if isinstance(last, Reject) else found.fit(root, last)
            if trouble is None:
                operands, scalars = tuple(found.operands), tuple(found.scalars)
                return Match(self, tuple(found.nodes), operands, scalars, constants, found.anchor)
            rejected.append(trouble)
        return rejected[0]


def _end_of(path: tuple[Part, ...], node: Node) -> Node | Reject:
    """The last node of a path that starts at a node, where each is read by the next."""
    first, *rest = path
    if not first.is_called_by(node):
        return _another(node, first)
    for below, each in zip(path, rest, strict=False):
        readers = list(node.users)
        if below.may_be_read_elsewhere:
            readers = [reader for reader in readers if each.is_called_by(reader)][:1] or readers[:1]
        if len(readers) != 1:
            return _used_elsewhere(node, each)
        (node,) = readers
        if not each.is_called_by(node):
            return _another(node, each)
    return node


def _another(node: Node, wanted: Part) -> Reject:
    return Reject("not_the_operator", (node,), f"{node.name} is not {wanted}")


def _used_elsewhere(node: Node, reader: Part) -> Reject:
    text = f"{node.name} is used by more than {reader}, so it cannot be fused with it"
    return Reject("used_elsewhere", (node, *node.users), text)


class _Found:
    """Nodes, tensors and numbers of a tree, as far as it has been matched from its last operator up."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.operands: list[tuple[Node, Node, str]] = []
        self.scalars: list[tuple[Node, int, int | float | complex]] = []
        self.anchor: Node
        self._values: dict[Value, Any] = {}

    def fit(self, each: Part, node: Node) -> Reject | None:
        """Match a part with a node, and what is below it. Returns what does not fit."""
        operator = next((one for one in each.alternatives if overload_name(node) in one.overloads), None)
        if operator is None:
            return _another(node, each)
        keywords = {operand.position: operand.keyword for operand in operator.operands}
        arguments = [
            (index, _argument(node, index, keywords.get(index, ""))) for index in range(len(each.inputs))
        ]
        trouble = self._fit_inputs(each, node, arguments)
        if trouble is not None and operator.name in _COMMUTATIVE and len(arguments) == 2:
            trouble = self._fit_inputs(each, node, arguments[::-1]) and trouble
        if trouble is None:
            self._take(each, node)
        return trouble

    def _fit_inputs(self, each: Part, node: Node, arguments: Iterable[tuple[int, Any]]) -> Reject | None:
        """Match what a node reads; where something does not fit, all is as it was before."""
        before = (self.nodes[:], self.operands[:], self.scalars[:], dict(self._values))
        for wanted, (position, given) in zip(each.inputs, arguments, strict=True):
            trouble = self._fit_input(each, node, position, wanted, given)
            if trouble is not None:
                self.nodes, self.operands, self.scalars, self._values = before
                return trouble
        return None

    def _fit_input(
        self, each: Part, node: Node, position: int, wanted: Part | Value | float, given: Any
    ) -> Reject | None:
        if isinstance(wanted, Part):
            if not hasattr(given, "users") or not wanted.is_called_by(given):
                return _another(node, each)
            if len(given.users) != 1 and not wanted.may_be_read_elsewhere:
                return _used_elsewhere(given, each)
            return self.fit(wanted, given)
        if isinstance(wanted, Value):
            known = self._values.setdefault(wanted, given)
            self._take_operand(node, position, wanted.role, given)
            is_same = known is given or (isinstance(known, (int, float)) and known == given)
            return None if is_same else _another(node, each)
        is_number = isinstance(given, (int, float)) and math.isclose(given, wanted, rel_tol=1e-6)
        return None if is_number else _another(node, each)

    def _take(self, each: Part, node: Node) -> None:
        self.nodes.append(node)
        if each.does_the_work:
            self.anchor = node
        for operand in each.declared:
            value = _argument(node, operand.position, operand.keyword)
            for item in value if operand.is_list else (value,):
                self._take_operand(node, operand.position, operand.role, item)

    def _take_operand(self, node: Node, position: int, role: str, value: Any) -> None:
        if not role or value is None:
            return
        if isinstance(value, (int, float, complex)):
            self.scalars.append((node, position, value))
        else:
            self.operands.append((value, node, role))


def _argument(node: Node, position: int, keyword: str = "") -> Any:
    return node.args[position] if position < len(node.args) else node.kwargs.get(keyword)
