"""Constraints on weights and biases, and on the padding and groups of convolutions."""

from __future__ import annotations

from torchquilt.support.call_facts import argument, is_pointwise, padding_of
from torchquilt.support.pattern import Match
from torchquilt.support.table import Constraint


def _weights_are_constant(match: Match) -> bool:
    return all(match.is_constant(node) for node in (*match.inputs("weight"), *match.inputs("bias")))


CONSTANT_WEIGHT = Constraint(
    "constant_weight", "weight and bias are constants of the model", _weights_are_constant
)


def _is_matrix(match: Match) -> bool:
    (weight,) = match.inputs("weight")
    return bool(weight.meta["val"].dim() == 2)


MATRIX = Constraint("matrix", "the weight has two dimensions", _is_matrix)


def _has_bias_of_channels(match: Match) -> bool:
    for bias in match.inputs("bias"):
        shape = [1, *bias.meta["val"].shape]
        length = shape.pop()
        if any(size != 1 for size in shape) or length not in (1, match.anchor.meta["val"].shape[-1]):
            return False
    return True


BIAS_OF_CHANNELS = Constraint(
    "bias", "the bias has one number for each output channel, or one in total", _has_bias_of_channels
)


def _groups(match: Match) -> int:
    groups: int = argument(match, 6, "groups", 1)
    return groups


def _groups_found(match: Match) -> str:
    return f"it is {_groups(match)}"


ONE_GROUP = Constraint("one_group", "groups is 1", lambda match: _groups(match) == 1, _groups_found)


SEVERAL_GROUPS = Constraint(
    "several_groups", "groups is larger than 1", lambda match: _groups(match) > 1, _groups_found
)


def _has_inputs_in_groups(match: Match) -> bool:
    (weight,) = match.inputs("weight")
    return bool(weight.meta["val"].shape[1] > 1)


NOT_DEPTHWISE = Constraint(
    "not_depthwise", "each group has two or more input channels", _has_inputs_in_groups
)


POINTWISE = Constraint(
    "pointwise",
    "the kernel has one pixel, the stride is 1, and there is one group and no padding",
    lambda match: is_pointwise(match.anchor),
)


NOT_POINTWISE = Constraint(
    "not_pointwise",
    "it is not pointwise (a kernel of one pixel, a stride of 1, one group and no padding)",
    lambda match: not is_pointwise(match.anchor),
)


def _is_padded_evenly(match: Match) -> bool:
    if argument(match, 4, "padding") != "same":
        return True
    (weight,) = match.inputs("weight")
    kernel = weight.meta["val"].shape[2:]
    dilation = list(argument(match, 5, "dilation", [1])) * len(kernel)
    return all((size - 1) * step % 2 == 0 for size, step in zip(kernel, dilation, strict=False))


EVEN_PADDING = Constraint("even_padding", "both sides get the same padding", _is_padded_evenly)


def _pads_image(match: Match) -> bool:
    spatial = match.inputs("weight")[0].meta["val"].dim() - 2
    return all(
        not any(sizes)
        for dim, sizes in padding_of(match.nodes[0]).items()
        if dim < match.nodes[0].meta["val"].dim() - spatial
    )


PADS_IMAGE = Constraint("pads_image", "the padding adds neither samples nor channels", _pads_image)


def _input_features(match: Match) -> int:
    (weight,) = match.inputs("weight")
    axis = (
        0 if match.pattern.working.name in ("addmm", "matmul") else -1
    )  # a weight may have more than two dimensions
    features: int = weight.meta["val"].shape[axis]
    return features


EVEN_INPUTS = Constraint(
    "even_inputs",
    "the number of input features is even",
    lambda match: _input_features(match) % 2 == 0,
    lambda match: f"it is {_input_features(match)}",
)


def divides_into_groups(size: int) -> Constraint:
    """Require a number of input features that is a multiple of the group size."""
    return Constraint(
        "groups",
        f"the number of input features is a multiple of {size}",
        lambda match: _input_features(match) % size == 0,
        lambda match: f"it is {_input_features(match)}",
    )
