"""Chains of operators with roles, and the answer of matching one: a Match or a Reject.

A pattern reads operator overloads and data flow, nothing else, so it works the same on strict and
non-strict exports and on programs that were saved and loaded. Matching never writes to the graph.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any

import attrs

from torchquilt.errors import PatternError
from torchquilt.graph.node_values import is_constant, overload_name
from torchquilt.reasons import rank_of
from torchquilt.support.operators import Operand, Operator

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
        nodes: one node for each operator of the pattern, in order of data flow.
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

    @property
    def anchor(self) -> Node:
        """The node that does the work (the conv of pad + conv + relu)."""
        return self.nodes[self.pattern.anchor_index]

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


@attrs.frozen
class OperatorPattern:
    """A chain of operators: each one but the last is used by the next one alone.

    Args:
        name: unique within a table, for example ``conv2d_relu``.
        operators: the chain. Besides the chain itself, the first operator and the one that does the work have
            operands with roles.
        anchor_index: index of the operator that does the work (1 for pad + conv).
    """

    name: str
    operators: tuple[Operator, ...] = attrs.field()
    anchor_index: int = attrs.field(default=0)

    @operators.validator
    def _not_empty(self, _: object, operators: tuple[Operator, ...]) -> None:
        if not operators:
            raise PatternError(
                f"The pattern {self.name!r} has no operator.",
                expected="at least one Operator",
                got="()",
                remedy="OperatorPattern.of(LINEAR) or OperatorPattern.of(CONV2D, RELU)",
            )

    @anchor_index.validator
    def _in_chain(self, _: object, anchor_index: int) -> None:
        if not 0 <= anchor_index < len(self.operators):
            raise PatternError(
                f"The pattern {self.name!r} has no operator that does the work.",
                expected=f"0 <= anchor_index < {len(self.operators)}, the number of operators",
                got=f"anchor_index={anchor_index}",
            )

    @classmethod
    def of(cls, *operators: Operator, name: str = "", anchor_index: int = 0) -> OperatorPattern:
        """A chain that is named after its operators."""
        return cls(name or "_".join(operator.name for operator in operators), operators, anchor_index)

    @property
    def working(self) -> Operator:
        """The operator that does the work."""
        return self.operators[self.anchor_index]

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that tensors around the pattern have, the output's last."""
        roles = (*self.operators[0].roles[:-1], *self.working.roles[:-1], "output_activation")
        return tuple(dict.fromkeys(roles))

    def match(self, node: Node, constants: Container[Node] | None = None) -> Match | Reject:
        """Match with ``node`` as the first operator of the chain. Costs as much as the chain is long.

        Args:
            node: the first operator.
            constants: the constant nodes of the graph, where they are known; the match answers from them.
        """
        first, *rest = self.operators
        if overload_name(node) not in first.overloads:
            return Reject("not_the_operator", (node,), f"{node.name} is not {first.name}")
        chain = [node]
        for operator in rest:
            following = _only_user(chain[-1])
            if following is None:
                return Reject(
                    "used_elsewhere",
                    (chain[-1], *chain[-1].users),
                    f"{chain[-1].name} is used by more than {operator.name}, so it cannot be fused with it",
                )
            if overload_name(following) not in operator.overloads or _argument(following, 0) is not chain[-1]:
                return Reject("not_the_operator", (following,), f"{following.name} is not {operator.name}")
            chain.append(following)
        operands, scalars = _operands(node, first.operands)
        if self.anchor_index:  # what the chain passes to it is no operand
            others = tuple(operand for operand in self.working.operands if operand.position)
            more, more_scalars = _operands(chain[self.anchor_index], others)
            operands, scalars = (*operands, *more), (*scalars, *more_scalars)
        return Match(self, tuple(chain), operands, scalars, constants)


def numbers_of(
    node: Node, declared: tuple[Operand, ...]
) -> tuple[tuple[Node, int, int | float | complex], ...]:
    """The Python numbers that stand at the declared arguments of a node, as in :attr:`Match.scalars`."""
    return _operands(node, declared)[1]


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _argument(node: Node, position: int, keyword: str = "") -> Any:
    return node.args[position] if position < len(node.args) else node.kwargs.get(keyword)


def _operands(
    node: Node, declared: tuple[Operand, ...]
) -> tuple[tuple[tuple[Node, Node, str], ...], tuple[tuple[Node, int, int | float | complex], ...]]:
    """The tensors and the numbers that stand at the declared arguments of a node."""
    tensors: list[tuple[Node, Node, str]] = []
    scalars: list[tuple[Node, int, int | float | complex]] = []
    for operand in declared:
        value = _argument(node, operand.position, operand.keyword)
        for item in value if operand.is_list else (value,):
            if isinstance(item, (int, float, complex)):
                scalars.append((node, operand.position, item))
            elif item is not None:
                tensors.append((item, node, operand.role))
    return tuple(tensors), tuple(scalars)
