"""Constraints on value ranges: no scale fits tensors whose extremes hide the values that matter.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import TYPE_CHECKING, Any

from torchquilt.graph.node_values import overload_name
from torchquilt.support import operators as ops
from torchquilt.support.operators import OPERATORS
from torchquilt.support.pattern import Match
from torchquilt.support.table import Constraint

if TYPE_CHECKING:
    from torch.fx import Node

# An addition that only softmax reads adds an attention mask or bias. Masked entries are as low as possible.
# With 8 bits, a scale that holds them leaves no steps for the scores, and a scale that clips them lets the
# model attend to them. If the graph makes the mask, its fill value gives it away.
_LARGEST = 1e4
_FILLING = frozenset(
    f"aten.{name}"
    for name in (
        "full.default", "full_like.default", "masked_fill.Scalar", "mul.Tensor", "new_full.default",
        "where.Scalar", "where.ScalarOther", "where.ScalarSelf",
    )
)  # fmt: skip
# These include every operator that a rewrite replaces, so that the rewritten match gets the same answer.
_ONLY_SHAPES = frozenset(
    (
        *(o for op in OPERATORS if op.moves_data and not op.operands[0].is_list for o in op.overloads),
        *ops.TO.overloads,
        "aten._to_copy.default",
        "aten.tril.default",
        "aten.triu.default",
    )
)
# Between the sum and softmax there may be a temperature, or a bound on the scores.
_KEEP_THE_MASK = _ONLY_SHAPES | {
    "aten.clamp.default", "aten.div.Tensor", "aten.div_.Tensor", "aten.max.other", "aten.maximum.default",
    "aten.mul.Tensor",
}  # fmt: skip
_SOFTMAX = frozenset({"aten.softmax.int", "aten._softmax.default", "aten._safe_softmax.default"})
# The number of nodes to visit. The limit keeps the cost linear in the nodes of the graph.
_NEARBY = 16


def _users_nearby(node: Node, through: Container[str]) -> Iterator[tuple[Node, Node]]:
    """Each user of a tensor, or of a result of ``through`` on it, with the tensor that it reads."""
    reached = [node]
    for current in reached:  # grows while it is walked
        for user in current.users:
            yield user, current
            if overload_name(user) in through and user not in reached and len(reached) < _NEARBY:
                reached.append(user)


def _is_huge(value: Any) -> bool:
    return isinstance(value, (int, float)) and not abs(value) < _LARGEST


def _before_shape_changes(node: Node) -> Node:
    """The tensor before its shape or dtype was changed."""
    for _ in range(_NEARBY):
        if overload_name(node) not in _ONLY_SHAPES:
            break
        node = node.all_input_nodes[0]
    return node


def _is_filled_with_huge(node: Node) -> bool:
    origin = _before_shape_changes(node)
    return overload_name(origin) in _FILLING and any(map(_is_huge, origin.args))


def _is_not_a_mask(match: Match) -> bool:
    if any(_is_huge(value) for _, _, value in match.scalars):
        return False
    if any(_is_filled_with_huge(node) for node in match.inputs("input_activation")):
        return False
    return not any(overload_name(user) in _SOFTMAX for user, _ in _users_nearby(match.output, _KEEP_THE_MASK))


NOT_A_MASK = Constraint(
    "attention_mask",
    "it neither makes an attention mask nor adds one to the input of softmax",
    _is_not_a_mask,
)


# A normalization in single steps, x * rsqrt(variance + epsilon). Variances of tokens differ by orders of
# magnitude, and a token that attends to nothing has a variance of 0. A scale that holds the largest variance
# rounds the smallest to 0, whose inverse is infinite. A scale that holds the largest inverse rounds most
# others to 0.
_ROOTS = _ONLY_SHAPES | {"aten.sqrt.default"}
_INVERSES = frozenset({"aten.rsqrt.default", "aten.reciprocal.default"})


def _is_inverse(node: Node) -> bool:
    exponent = node.args[1] if overload_name(node) == "aten.pow.Tensor_Scalar" else 0
    return overload_name(node) in _INVERSES or (isinstance(exponent, (int, float)) and exponent < 0)


def _inverts(user: Node, tensor: Node) -> bool:
    return _is_inverse(user) or (overload_name(user) == "aten.div.Tensor" and user.args[1] is tensor)


def _is_no_normalization(match: Match) -> bool:
    if any(_is_inverse(_before_shape_changes(node)) for node in match.inputs("input_activation")):
        return False
    return not any(_inverts(user, tensor) for user, tensor in _users_nearby(match.output, _ROOTS))


NO_NORMALIZATION = Constraint(
    "normalization",
    "it is not a step of a normalization: it neither reads an inverse nor feeds one",
    _is_no_normalization,
)
