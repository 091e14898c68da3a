"""Conditions on what numbers mean: tensors whose range leaves no steps of an integer grid for what matters.

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

# An addition that only softmax reads is an attention mask or bias. Its masked entries are meant to be as low
# as can be; on an 8-bit grid they would either leave no steps for the scores or come so close to them that
# what is masked is attended to. Where the mask is made in the graph, the number that it is filled with tells.
_LARGEST = 1e4
_FILLING = frozenset(
    f"aten.{name}"
    for name in (
        "full.default", "full_like.default", "masked_fill.Scalar", "mul.Tensor", "new_full.default",
        "where.Scalar", "where.ScalarOther", "where.ScalarSelf",
    )
)  # fmt: skip
# Among these are all that are written as others, so that what is asked again afterwards is answered alike.
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
# So many nodes are looked at. It keeps the cost linear in the nodes of the graph.
_NEARBY = 16


def _users_nearby(node: Node, through: Container[str]) -> Iterator[tuple[Node, Node]]:
    """Each user of a tensor, and of the results of some operators on it, with what it uses."""
    reached = [node]
    for current in reached:  # which grows on the way
        for user in current.users:
            yield user, current
            if overload_name(user) in through and user not in reached and len(reached) < _NEARBY:
                reached.append(user)


def _is_huge(value: Any) -> bool:
    return isinstance(value, (int, float)) and not abs(value) < _LARGEST


def _behind_shapes(node: Node) -> Node:
    """Tensor before its shape or dtype was changed."""
    for _ in range(_NEARBY):
        if overload_name(node) not in _ONLY_SHAPES:
            break
        node = node.all_input_nodes[0]
    return node


def _is_filled_with_huge(node: Node) -> bool:
    origin = _behind_shapes(node)
    return overload_name(origin) in _FILLING and any(map(_is_huge, origin.args))


def _is_not_a_mask(match: Match) -> bool:
    if any(_is_huge(value) for _, _, value in match.scalars):
        return False
    if any(_is_filled_with_huge(node) for node in match.inputs("input_activation")):
        return False
    return not any(overload_name(user) in _SOFTMAX for user, _ in _users_nearby(match.output, _KEEP_THE_MASK))


NOT_A_MASK = Constraint(
    "attention_mask",
    "it does not make an attention mask, nor add one to what goes into softmax",
    _is_not_a_mask,
)


# A normalization in single steps, x * rsqrt(variance + epsilon). The variances of tokens lie orders of
# magnitude apart, and that of one which attends to nothing is 0. On an integer grid that holds the largest
# the smallest is 0, with an infinite inverse; and on one that holds the largest inverse most others are 0.
_ROOTS = _ONLY_SHAPES | {"aten.sqrt.default"}
_INVERSES = frozenset({"aten.rsqrt.default", "aten.reciprocal.default"})


def _is_inverse(node: Node) -> bool:
    exponent = node.args[1] if overload_name(node) == "aten.pow.Tensor_Scalar" else 0
    return overload_name(node) in _INVERSES or (isinstance(exponent, (int, float)) and exponent < 0)


def _inverts(user: Node, tensor: Node) -> bool:
    return _is_inverse(user) or (overload_name(user) == "aten.div.Tensor" and user.args[1] is tensor)


def _is_no_normalization(match: Match) -> bool:
    if any(_is_inverse(_behind_shapes(node)) for node in match.inputs("input_activation")):
        return False
    return not any(_inverts(user, tensor) for user, tensor in _users_nearby(match.output, _ROOTS))


NO_NORMALIZATION = Constraint(
    "normalization",
    "it is no step of a normalization: no inverse is taken of its result, nor does it read one",
    _is_no_normalization,
)
