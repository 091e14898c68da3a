"""Conditions on the rows of the table: what the delegate needs besides the operator and the numbers.

Each is what ``partition/config`` of ExecuTorch's XNNPACK delegate checks before it takes a node, asked
before anything is quantized, so that nothing is quantized that the delegate then leaves behind.
"""

from __future__ import annotations

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


# An addition that only softmax reads is an attention mask or bias. Its masked entries are meant to be as
# low as can be; on an 8-bit grid they would either leave no steps for the scores or come so close to them
# that what is masked is attended to. Whatever a multiplication by such a number is used for, it makes a mask.
_LARGEST = 1e4
# Among these are all that are written as reshape, so that what is asked again afterwards is answered alike.
_ONLY_SHAPES = (
    "aten.view.default",
    "aten.reshape.default",
    "aten.flatten.using_ints",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.unsqueeze.default",
    "aten.transpose.int",
    "aten.permute.default",
    "aten.expand.default",
    "aten.dropout.default",
    "aten.to.dtype",
    "aten.slice.Tensor",
)
_SOFTMAX = ("aten.softmax.int", "aten._softmax.default", "aten._safe_softmax.default")


def _goes_into_softmax(node: Node) -> bool:
    seen: set[Node] = set()
    pending = [node]
    while pending:
        for user in pending.pop().users:
            if str(user.target) in _SOFTMAX:
                return True
            if str(user.target) in _ONLY_SHAPES and user not in seen:
                seen.add(user)
                pending.append(user)
    return False


def _is_huge(value: Any) -> bool:
    return isinstance(value, (int, float)) and not abs(value) < _LARGEST


def _is_not_a_mask(match: Match) -> bool:
    return not _goes_into_softmax(match.output) and not any(_is_huge(value) for _, _, value in match.scalars)


NOT_A_MASK = Constraint(
    "attention_mask",
    "it does not make an attention mask, nor add one to what goes into softmax",
    _is_not_a_mask,
)
