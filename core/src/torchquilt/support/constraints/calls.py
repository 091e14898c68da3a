"""Constraints on the arguments of an operator: sizes, numbers and modes."""

from __future__ import annotations

from torchquilt.support.call_facts import argument, bounds, pads_with_zeros
from torchquilt.support.constraints.tensors import is_static
from torchquilt.support.pattern import Match
from torchquilt.support.table import Constraint


def keyword_is(keyword: str, value: object, code: str, text: str) -> Constraint:
    """Require a value of a keyword-only argument of the anchor, passed or by default.

    Args:
        keyword: name of the argument.
        value: the value that is required.
        code: code of the constraint.
        text: the constraint in words.
    """
    return Constraint(
        code,
        text,
        lambda match: match.anchor.kwargs.get(keyword, value) == value,
        lambda match: f"it is {match.anchor.kwargs.get(keyword)}",
    )


NO_ALPHA = keyword_is("alpha", 1, "alpha", "alpha is 1")


NO_THIRD = Constraint("alpha", "alpha is 1", lambda match: argument(match, 2, "alpha", 1) == 1)


def _scales_nothing(match: Match) -> bool:
    return all(match.anchor.kwargs.get(name, 1) == 1 for name in ("alpha", "beta"))


UNSCALED = Constraint("unscaled", "alpha and beta are 1", _scales_nothing)


def _pools_to_one_pixel(match: Match) -> bool:
    size = argument(match, 1, "output_size")
    return list(size) in ([1], [1, 1])


POOLS_TO_ONE_PIXEL = Constraint(
    "output_size",
    "the output size is 1 x 1",
    _pools_to_one_pixel,
    lambda match: f"it is {argument(match, 1, 'output_size')}",
)


def _rank(match: Match) -> int:
    rank: int = match.inputs("input_activation")[0].meta["val"].dim()
    return rank


def _is_mean_over_image(match: Match) -> bool:
    dims = argument(match, 1, "dim") or ()
    rank = _rank(match)
    return sorted(dim % rank for dim in dims) == [2, 3] and argument(match, 3, "dtype") is None


MEAN_OVER_IMAGE = Constraint("mean_over_image", "the mean is over height and width", _is_mean_over_image)


def _ceil_mode_is_static(match: Match) -> bool:
    return not argument(match, 5, "ceil_mode", False) or is_static(match)


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


STEP_OF_ONE = Constraint(
    "step", "the step is 1", _has_step_of_one, lambda match: f"it is {argument(match, 4, 'step', 1)}"
)


def _is_one_static_index(match: Match) -> bool:
    data = match.inputs("input_activation")[0].meta["val"]
    index = argument(match, 2, "index")
    return isinstance(index, int) and all(isinstance(size, int) for size in data.shape)


STATIC_INDEX = Constraint("static_index", "the shape and the index are static", _is_one_static_index)


def _starts_at_a_number(match: Match) -> bool:
    data = match.inputs("input_activation")[0].meta["val"]
    start = argument(match, 2, "start")
    return isinstance(start, int) and all(isinstance(size, int) for size in data.shape)


STATIC_START = Constraint("static_start", "the shape and the start are static", _starts_at_a_number)


def _divides_by_a_number(match: Match) -> bool:
    if match.scalars:
        return all(isinstance(value, (int, float)) and value != 0 for _, _, value in match.scalars)
    *_, divisor = match.inputs("input_activation")
    return match.is_constant(divisor) and divisor.meta["val"].dim() == 0


BY_A_NUMBER = Constraint(
    "by_a_number", "the divisor is a number other than 0, or a constant of one element", _divides_by_a_number
)


ZEROS = Constraint(
    "zeros",
    "it pads with zeros, and crops nothing",
    lambda match: pads_with_zeros(match.nodes[0]),
)


def _has_two_bounds(match: Match) -> bool:
    return all(isinstance(bound, (int, float)) for bound in bounds(match.output))


TWO_BOUNDS = Constraint("bounds", "both bounds of the clamp are numbers", _has_two_bounds)
