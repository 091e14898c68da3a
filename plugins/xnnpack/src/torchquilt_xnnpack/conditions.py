"""Conditions on the rows of the table: what the delegate needs besides the operator and the numbers.

Each is what ``partition/config`` of ExecuTorch's XNNPACK delegate checks before it takes a node, asked
before anything is quantized, so that nothing is quantized that the delegate then leaves behind.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import TYPE_CHECKING, Any

from torchquilt import Constraint, Match
from torchquilt.constraints import CONSTANT_WEIGHT, FLOAT32, argument, input_rank, keyword_is

if TYPE_CHECKING:
    from torch.fx import Node

__all__ = [
    "CEIL_MODE_IS_STATIC",
    "CONSTANT_WEIGHT",
    "EVERY_PIXEL",
    "FLOAT32",
    "IMAGE",
    "MEAN_OVER_IMAGE",
    "NOT_A_MASK",
    "NO_ALPHA",
    "NO_NORMALIZATION",
    "PLAIN_SIZE",
    "POOLS_TO_ONE_PIXEL",
    "STATIC_SHAPE",
    "STEP_OF_ONE",
    "TWO_BOUNDS",
    "TWO_OR_MORE",
    "bounds",
]

NO_ALPHA = keyword_is("alpha", 1, "alpha", "alpha is 1")
IMAGE = input_rank(4)


def _rank(match: Match) -> int:
    rank: int = match.inputs("input_activation")[0].meta["val"].dim()
    return rank


def _has_two_inputs(match: Match) -> bool:
    return len(match.anchor.all_input_nodes) >= 2


TWO_OR_MORE = Constraint("two_inputs", "two or more different tensors are joined", _has_two_inputs)


def _pools_to_one_pixel(match: Match) -> bool:
    size = argument(match, 1, "output_size")
    return list(size) in ([1], [1, 1])


POOLS_TO_ONE_PIXEL = Constraint("output_size", "the output size is 1 x 1", _pools_to_one_pixel)


def _is_mean_over_image(match: Match) -> bool:
    dims = argument(match, 1, "dim") or ()
    rank = _rank(match)
    keeps = bool(argument(match, 2, "keepdim", False))
    return keeps and sorted(dim % rank for dim in dims) == [2, 3] and argument(match, 3, "dtype") is None


MEAN_OVER_IMAGE = Constraint(
    "mean_over_image", "the mean is over height and width, with keepdim=True", _is_mean_over_image
)


def _ceil_mode_is_static(match: Match) -> bool:
    return not argument(match, 5, "ceil_mode", False) or _is_static(match)


CEIL_MODE_IS_STATIC = Constraint(
    "ceil_mode", "ceil_mode is False, or the shapes are static", _ceil_mode_is_static
)


def _pools_every_pixel(match: Match) -> bool:
    kernel = argument(match, 1, "kernel_size")
    stride = argument(match, 2, "stride") or kernel
    pairs = zip(*(list(value) * (2 // len(value)) for value in (kernel, stride)), strict=True)
    return all(step <= size for size, step in pairs)


EVERY_PIXEL = Constraint("stride", "the stride is not larger than the kernel", _pools_every_pixel)


def _has_step_of_one(match: Match) -> bool:
    return bool(argument(match, 4, "step", 1) == 1)


STEP_OF_ONE = Constraint("step", "the step is 1", _has_step_of_one)


def _is_static(match: Match) -> bool:
    return all(isinstance(size, int) for size in match.output.meta["val"].shape)


STATIC_SHAPE = Constraint("static_shape", "the shape is static", _is_static)


def _has_plain_size(match: Match) -> bool:
    return all(isinstance(size, int) for size in argument(match, 1, "size") or argument(match, 1, "shape"))


PLAIN_SIZE = Constraint(
    "plain_size", "the new shape is given in numbers, one of which may be -1", _has_plain_size
)


def bounds(clamp: Node) -> tuple[Any, Any]:
    """The lower and upper bound of a ``clamp``, each a number or None."""
    low = clamp.args[1] if len(clamp.args) > 1 else clamp.kwargs.get("min")
    high = clamp.args[2] if len(clamp.args) > 2 else clamp.kwargs.get("max")
    return low, high


def _has_two_bounds(match: Match) -> bool:
    return all(isinstance(bound, (int, float)) for bound in bounds(match.output))


TWO_BOUNDS = Constraint("bounds", "both bounds of the clamp are numbers", _has_two_bounds)


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
# Among these are all that are written as reshape, so that what is asked again afterwards is answered alike.
_ONLY_SHAPES = frozenset(
    f"aten.{name}"
    for name in (
        "_to_copy.default", "clone.default", "contiguous.default", "dropout.default", "expand.default",
        "flatten.using_ints", "permute.default", "reshape.default", "select.int", "slice.Tensor",
        "squeeze.dim", "squeeze.dims", "to.device", "to.dtype", "to.dtype_layout", "transpose.int",
        "tril.default", "triu.default", "type_as.default", "unsqueeze.default", "view.default",
    )
)  # fmt: skip
# Between the sum and softmax there may be a temperature, or a bound on the scores.
_KEEP_THE_MASK = _ONLY_SHAPES | {
    "aten.clamp.default", "aten.div.Tensor", "aten.div_.Tensor", "aten.max.other", "aten.maximum.default",
    "aten.mul.Tensor",
}  # fmt: skip
_SOFTMAX = frozenset({"aten.softmax.int", "aten._softmax.default", "aten._safe_softmax.default"})
# So many nodes are looked at. It keeps the cost linear in the nodes of the graph.
_NEARBY = 16


def _users_nearby(node: Node, through: Container[str]) -> Iterator[tuple[Node, Node]]:
    """Each user of a tensor, and of what becomes of it through some operators, with what it uses."""
    reached = [node]
    for current in reached:  # which grows on the way
        for user in current.users:
            yield user, current
            if str(user.target) in through and user not in reached and len(reached) < _NEARBY:
                reached.append(user)


def _is_huge(value: Any) -> bool:
    return isinstance(value, (int, float)) and not abs(value) < _LARGEST


def _behind_shapes(node: Node) -> Node:
    """What a tensor was before its shape or dtype was changed."""
    for _ in range(_NEARBY):
        if str(node.target) not in _ONLY_SHAPES:
            break
        node = node.all_input_nodes[0]
    return node


def _is_filled_with_huge(node: Node) -> bool:
    origin = _behind_shapes(node)
    return str(origin.target) in _FILLING and any(map(_is_huge, origin.args))


def _is_not_a_mask(match: Match) -> bool:
    if any(_is_huge(value) for _, _, value in match.scalars):
        return False
    if any(_is_filled_with_huge(node) for node in match.inputs("input_activation")):
        return False
    return not any(str(user.target) in _SOFTMAX for user, _ in _users_nearby(match.output, _KEEP_THE_MASK))


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
    exponent = node.args[1] if str(node.target) == "aten.pow.Tensor_Scalar" else 0
    return str(node.target) in _INVERSES or (isinstance(exponent, (int, float)) and exponent < 0)


def _inverts(user: Node, tensor: Node) -> bool:
    return _is_inverse(user) or (str(user.target) == "aten.div.Tensor" and user.args[1] is tensor)


def _is_no_normalization(match: Match) -> bool:
    if any(_is_inverse(_behind_shapes(node)) for node in match.inputs("input_activation")):
        return False
    return not any(_inverts(user, tensor) for user, tensor in _users_nearby(match.output, _ROOTS))


NO_NORMALIZATION = Constraint(
    "normalization",
    "it is no step of a normalization: no inverse is taken of its result, nor does it read one",
    _is_no_normalization,
)
