"""Conditions on the rows of the table: what the delegate needs besides the operator and the numbers.

Each is what ``partition/config`` of ExecuTorch's XNNPACK delegate checks before it takes a node, or what its
kernels were seen to need, asked before anything is quantized, so that nothing is quantized that the delegate
then leaves behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchquilt import Constraint, Match
from torchquilt.backend import (
    CONSTANT_WEIGHT,
    FLOAT32,
    argument,
    arguments_of,
    input_rank,
    keyword_is,
    one_dtype,
    overload_name,
)

if TYPE_CHECKING:
    from torch.fx import Node

__all__ = [
    "BIAS_OF_CHANNELS",
    "BY_A_NUMBER",
    "CEIL_MODE_IS_STATIC",
    "CONSTANT_WEIGHT",
    "DIMENSIONS",
    "EVEN_INPUTS",
    "EVEN_PADDING",
    "EVERY_PIXEL",
    "FLOAT32",
    "FLOAT32_OR_16",
    "IMAGE",
    "MATRIX",
    "MEAN_OVER_IMAGE",
    "NOT_DEPTHWISE",
    "NOT_POINTWISE",
    "NO_ALPHA",
    "NO_THIRD",
    "ONE_GROUP",
    "ONE_SAMPLE",
    "ONE_RANK",
    "ONE_UNKNOWN",
    "PADS_IMAGE",
    "POINTWISE",
    "POOLS_TO_ONE_PIXEL",
    "REPEATS_NOTHING",
    "SEVERAL_GROUPS",
    "SIGNAL",
    "STATIC_INDEX",
    "STATIC_SHAPE",
    "STATIC_START",
    "STEP_OF_ONE",
    "TWO_BOUNDS",
    "TWO_OR_MORE",
    "UNSCALED",
    "ZEROS",
    "bounds",
    "divides_into_groups",
    "is_pointwise",
    "is_split",
    "padding_of",
    "pads_with_zeros",
    "split_dimension",
]

NO_ALPHA = keyword_is("alpha", 1, "alpha", "alpha is 1")
NO_THIRD = Constraint("alpha", "alpha is 1", lambda match: argument(match, 2, "alpha", 1) == 1)
# Weights of half precision have dynamic kernels; there is none of integers that returns bfloat16.
FLOAT32_OR_16 = one_dtype("float32", "float16")
IMAGE = input_rank(4)
SIGNAL = input_rank(3)


def _rank(match: Match) -> int:
    rank: int = match.inputs("input_activation")[0].meta["val"].dim()
    return rank


def _has_dimensions(match: Match) -> bool:
    """Constants are given dimensions where they have none."""
    tensors = (*(node for node, _, _ in match.operands if not match.is_constant(node)), match.output)
    return all(node.meta["val"].dim() > 0 for node in tensors)


DIMENSIONS = Constraint(
    "dimensions", "each tensor that is computed has at least one dimension", _has_dimensions
)


def _has_two_inputs(match: Match) -> bool:
    return len(match.anchor.all_input_nodes) >= 2


def _have_one_rank(match: Match) -> bool:
    ranks = {tensor.meta["val"].dim() for tensor in match.inputs("input_activation")}
    return len(ranks) == 1 and 0 not in ranks


ONE_RANK = Constraint("one_rank", "all tensors have as many dimensions, one at least", _have_one_rank)
TWO_OR_MORE = Constraint("two_inputs", "two or more different tensors are joined", _has_two_inputs)


def _pools_to_one_pixel(match: Match) -> bool:
    size = argument(match, 1, "output_size")
    return list(size) in ([1], [1, 1])


POOLS_TO_ONE_PIXEL = Constraint(
    "output_size",
    "the output size is 1 x 1",
    _pools_to_one_pixel,
    lambda match: f"it is {argument(match, 1, 'output_size')}",
)


def _is_mean_over_image(match: Match) -> bool:
    dims = argument(match, 1, "dim") or ()
    rank = _rank(match)
    return sorted(dim % rank for dim in dims) == [2, 3] and argument(match, 3, "dtype") is None


MEAN_OVER_IMAGE = Constraint("mean_over_image", "the mean is over height and width", _is_mean_over_image)


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


STEP_OF_ONE = Constraint(
    "step", "the step is 1", _has_step_of_one, lambda match: f"it is {argument(match, 4, 'step', 1)}"
)


def _is_static(match: Match) -> bool:
    return all(isinstance(size, int) for size in match.output.meta["val"].shape)


def _shape_found(match: Match) -> str:
    return f"it is {list(match.output.meta['val'].shape)}"


STATIC_SHAPE = Constraint("static_shape", "the shape of the result is static", _is_static, _shape_found)


def _has_one_unknown(match: Match) -> bool:
    return sum(not isinstance(size, int) for size in match.output.meta["val"].shape) <= 1


ONE_UNKNOWN = Constraint(
    "one_unknown",
    "at most one dimension of the result is not known ahead",
    _has_one_unknown,
    lambda match: f"its shape is {list(match.output.meta['val'].shape)}",
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


def _repeats_nothing(match: Match) -> bool:
    read, returned = (
        [size for size in node.meta["val"].shape if not isinstance(size, int) or size != 1]
        for node in (match.inputs("input_activation")[0], match.output)
    )
    # Sizes that are not known ahead are compared as they are written: to compare them decides them.
    return [str(size) for size in read] == [str(size) for size in returned]


REPEATS_NOTHING = Constraint(
    "repeats", "no element is repeated, for which the delegate has no kernel", _repeats_nothing
)


# --- Weights and biases -------------------------------------------------------------------------------------


def _is_matrix(match: Match) -> bool:
    (weight,) = match.inputs("weight")
    return bool(weight.meta["val"].dim() == 2)


MATRIX = Constraint("matrix", "the weight has two dimensions", _is_matrix)


def _scales_nothing(match: Match) -> bool:
    return all(match.anchor.kwargs.get(name, 1) == 1 for name in ("alpha", "beta"))


UNSCALED = Constraint("unscaled", "alpha and beta are 1", _scales_nothing)


def _has_bias_of_channels(match: Match) -> bool:
    for bias in match.inputs("bias"):
        shape = [1, *bias.meta["val"].shape]
        length = shape.pop()
        if any(size != 1 for size in shape) or length not in (1, match.anchor.meta["val"].shape[-1]):
            return False
    return True


BIAS_OF_CHANNELS = Constraint(
    "bias", "the bias has one number for each output channel, or one in all", _has_bias_of_channels
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


def _samples(match: Match) -> Any:
    return match.inputs("input_activation")[0].meta["val"].shape[0]


def _has_one_sample(match: Match) -> bool:
    return bool(_samples(match) == 1)


# The delegate finds parameters for each sample, and a dynamic quantize operator for the whole tensor.
ONE_SAMPLE = Constraint(
    "one_sample", "the batch has one sample", _has_one_sample, lambda match: f"it has {_samples(match)}"
)


def is_pointwise(node: Node) -> bool:
    """Whether a convolution computes each pixel from that pixel alone, all channels together.

    XNNPACK runs such a one as a matrix product over pixels. Its dynamic kernel then finds parameters for each
    pixel, whatever the other kernels do that read the same quantized tensor.
    """
    named = arguments_of(node)
    padding = named["padding"]
    return (
        tuple(named["weight"].meta["val"].shape[2:]) == (1, 1)
        and set(named["stride"]) == {1}
        and (isinstance(padding, str) or set(padding) == {0})
        and named["groups"] == 1
    )


POINTWISE = Constraint(
    "pointwise",
    "the kernel is of one pixel, with a stride of 1, in one group, without padding",
    lambda match: is_pointwise(match.anchor),
)
NOT_POINTWISE = Constraint(
    "not_pointwise",
    "it is not pointwise (a kernel of one pixel, with a stride of 1, in one group, without padding)",
    lambda match: not is_pointwise(match.anchor),
)


def _is_padded_evenly(match: Match) -> bool:
    if argument(match, 4, "padding") != "same":
        return True
    (weight,) = match.inputs("weight")
    kernel = weight.meta["val"].shape[2:]
    dilation = list(argument(match, 5, "dilation", [1])) * len(kernel)
    return all((size - 1) * step % 2 == 0 for size, step in zip(kernel, dilation, strict=False))


EVEN_PADDING = Constraint("even_padding", "it is padded by as much on either side", _is_padded_evenly)


def _input_features(match: Match) -> int:
    (weight,) = match.inputs("weight")
    axis = 0 if match.pattern.working.name in ("addmm", "matmul") else -1  # also of what is no matrix
    features: int = weight.meta["val"].shape[axis]
    return features


EVEN_INPUTS = Constraint(
    "even_inputs",
    "the number of input features is even",
    lambda match: _input_features(match) % 2 == 0,
    lambda match: f"it is {_input_features(match)}",
)


def divides_into_groups(size: int) -> Constraint:
    """The input features of a weight are a multiple of the size of its groups."""
    return Constraint(
        "groups",
        f"the number of input features is a multiple of {size}",
        lambda match: _input_features(match) % size == 0,
        lambda match: f"it is {_input_features(match)}",
    )


# --- Numbers and padding ------------------------------------------------------------------------------------


def _divides_by_a_number(match: Match) -> bool:
    if match.scalars:
        return all(isinstance(value, (int, float)) and value != 0 for _, _, value in match.scalars)
    *_, divisor = match.inputs("input_activation")
    return match.is_constant(divisor) and divisor.meta["val"].dim() == 0


BY_A_NUMBER = Constraint(
    "by_a_number", "it is divided by a number other than 0, or by a constant of one", _divides_by_a_number
)

_PADS = frozenset({"aten.pad.default", "aten.constant_pad_nd.default"})


def padding_of(node: Node) -> dict[int, tuple[int, int]]:
    """Dimension → how much is put before and behind it, for a call of ``pad``."""
    assert str(node.target) in _PADS
    amounts: Any = node.args[1]
    last = node.meta["val"].dim() - 1
    return {last - i // 2: (amounts[i], amounts[i + 1]) for i in range(0, len(amounts), 2)}


def pads_with_zeros(node: Node) -> bool:
    """Whether a node puts zeros around a tensor, and cuts nothing off."""
    if overload_name(node) not in _PADS:
        return False
    named = arguments_of(node)
    amounts, value = named["pad"], named["value"]
    is_constant = named.get("mode", "constant") == "constant" and value in (None, 0)
    return is_constant and all(isinstance(amount, int) and amount >= 0 for amount in amounts)


ZEROS = Constraint(
    "zeros",
    "it puts zeros around the tensor, and cuts nothing off",
    lambda match: pads_with_zeros(match.nodes[0]),
)


def _pads_image(match: Match) -> bool:
    spatial = match.inputs("weight")[0].meta["val"].dim() - 2
    return all(
        not any(sizes)
        for dim, sizes in padding_of(match.nodes[0]).items()
        if dim < match.nodes[0].meta["val"].dim() - spatial
    )


PADS_IMAGE = Constraint("pads_image", "neither samples nor channels are added", _pads_image)

# Operators that return a tensor in parts → where their dimension stands, or the dimension itself.
_SPLITS = {
    "aten.chunk.default": 2,
    "aten.split.Tensor": 2,
    "aten.split.sizes": 2,
    "aten.split_copy.Tensor": 2,
    "aten.split_with_sizes.default": 2,
    "aten.split_with_sizes_copy.default": 2,
    "aten.tensor_split.indices": 2,
    "aten.tensor_split.sections": 2,
    "aten.unbind.int": 1,
    "aten.unbind_copy.int": 1,
    "aten.unsafe_chunk.default": 2,
    "aten.unsafe_split.Tensor": 2,
    "aten.unsafe_split_with_sizes.default": 2,
}
_SPLITS_AT = {"aten.hsplit": 1, "aten.vsplit": 0, "aten.dsplit": 2}


def is_split(node: Node) -> bool:
    """Whether a node returns a tensor in parts along one of its dimensions."""
    name = overload_name(node)
    return name in _SPLITS or name.rpartition(".")[0] in _SPLITS_AT


def split_dimension(node: Node) -> int:
    """The dimension along which :func:`is_split` holds."""
    data: Any = node.args[0]
    rank: int = data.meta["val"].dim()
    name = overload_name(node)
    if name not in _SPLITS:
        return min(_SPLITS_AT[name.rpartition(".")[0]], rank - 1)
    position = _SPLITS[name]
    dim: Any = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
    return int(dim) % rank


def bounds(clamp: Node) -> tuple[Any, Any]:
    """The lower and upper bound of a ``clamp``, each a number or None."""
    named = arguments_of(clamp)
    return named.get("min"), named.get("max")


def _has_two_bounds(match: Match) -> bool:
    return all(isinstance(bound, (int, float)) for bound in bounds(match.output))


TWO_BOUNDS = Constraint("bounds", "both bounds of the clamp are numbers", _has_two_bounds)
