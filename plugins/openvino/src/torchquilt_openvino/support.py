"""Support table of OpenVINO's CPU plugin: the one table that is both queried and annotated from.

Each row was compiled and run: the rows are what the compiled graph computes in integers. Importing this
module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from torchquilt import AllowedSpec, Constraint, OperatorPattern, Refusal, Sharing, SupportRow, SupportTable
from torchquilt.backend import Match, Rewrite, argument, overload_name, rank
from torchquilt.backend import constraints as when
from torchquilt.backend import operators as ops
from torchquilt.backend import rewrites as write

_TARGETS = ("openvino",)

_ACTIVATION = AllowedSpec("uint8", 0, 255, ("per_tensor",))
# Zeros are joined as integers to what has a zero point of its own, and as floats to what has the middle one.
_AFFINE = AllowedSpec("uint8", 0, 255, ("per_tensor",), symmetric=False)
# The kernel of a transposed convolution adds no zero points: 128 of uint8 is 0 of int8.
_SYMMETRIC = AllowedSpec("uint8", 0, 255, ("per_tensor",), symmetric=True, exact_range=True)
_WEIGHT = AllowedSpec("int8", -128, 127, ("per_tensor", "per_axis"), symmetric=True, ch_axis=0)
_STATIC = {"input_activation": (_ACTIVATION,), "output_activation": (_ACTIVATION,)}


def _row(
    *operators: ops.Operator,
    specs: Mapping[str, tuple[AllowedSpec, ...]] = _STATIC,
    sharing: Sharing = Sharing.NONE,
    constraints: tuple[Constraint, ...] = (),
    suffix: str = "",
    channel_axis: int = 0,
    may_return_float: bool = False,
    rewrite: tuple[Rewrite, ...] = (),
) -> SupportRow:
    pattern = OperatorPattern.of(*operators, anchor_index=0)
    return SupportRow(
        attrs.evolve(pattern, name=pattern.name + suffix),
        specs,
        sharing=sharing,
        constraints=(when.FLOAT32, when.DIMENSIONS, *constraints),
        targets=_TARGETS,
        channel_axis=channel_axis,
        profitable_alone="weight" in specs,
        may_return_float=may_return_float,
        rewrite=rewrite,
    )


_PRODUCTS = frozenset((*ops.LINEAR.overloads, *ops.ADDMM.overloads, *ops.MATMUL.overloads))


def _is_in_no_chain(match: Match) -> bool:
    (node,) = match.inputs("input_activation")
    while (rank(node) or 0) == 2 and overload_name(node) not in _PRODUCTS:
        tensors = [one for one in node.all_input_nodes if rank(one)]
        if len(tensors) != 1:
            return True
        (node,) = tensors
    return (rank(node) or 0) != 2


# Of products of matrices one behind the other OpenVINO makes a single kernel, with some activations only.
NO_CHAIN = Constraint("chain", "no other product of matrices is before it", _is_in_no_chain)

# Activations that are computed in the kernel of the operator before them, and their conditions.
_FUSED: tuple[tuple[tuple[ops.Operator, ...], tuple[Constraint, ...]], ...] = (
    *(((one,), ()) for one in (ops.RELU, ops.RELU6, ops.HARDTANH, ops.SIGMOID)),
    *(((one,), (NO_CHAIN,)) for one in (ops.LEAKY_RELU, ops.SILU)),
    ((ops.CLAMP,), (when.TWO_BOUNDS,)),
    ((), ()),
)


def _weighted(
    operator: ops.Operator,
    *only: Constraint,
    channel_axis: int = 0,
    read: AllowedSpec = _ACTIVATION,
    fused: tuple[Constraint, ...] = (),
    rewrite: tuple[Rewrite, ...] = (),
) -> tuple[SupportRow, ...]:
    """Rows of an operator with a weight, one for each activation; ``fused`` is for those with one."""
    return tuple(
        _row(
            operator,
            *after,
            specs={**_STATIC, "input_activation": (read,), "weight": (_WEIGHT,)},
            channel_axis=channel_axis,
            constraints=(when.CONSTANT_WEIGHT, *only, *more, *(fused if after else ())),
            # The kernel of a product writes floats, too, and computes a GELU behind it.
            may_return_float=not _PRODUCTS.isdisjoint(operator.overloads),
            rewrite=rewrite,
        )
        for after, more in _FUSED
    )


_VOLUME = when.input_rank(5)


def _has_rows(match: Match) -> bool:
    return (rank(match.inputs("input_activation")[0]) or 0) > 1


# Of a vector OpenVINO makes a product that reads floats.
ROWS = Constraint("rows", "the input has two dimensions or more", _has_rows)
# Of more, OpenVINO adds the bias in a kernel of floats, with the activation behind it.
_FEW = (when.input_rank(2, 3),)
#: The kernel of integers moves on by so many pixels at most.
_LARGEST_STRIDE = 3


def _has_small_stride(match: Match) -> bool:
    stride = argument(match, 3, "stride", 1)
    return all(one <= _LARGEST_STRIDE for one in (stride if isinstance(stride, (list, tuple)) else [stride]))


SMALL_STRIDE = Constraint("stride", f"the stride is at most {_LARGEST_STRIDE}", _has_small_stride)
_WEIGHTED = (
    *_weighted(ops.LINEAR, ROWS, when.MATRIX, when.BIAS_OF_CHANNELS, fused=_FEW),
    *_weighted(ops.ADDMM, when.UNSCALED, when.BIAS_OF_CHANNELS, channel_axis=1, rewrite=(write.as_linear,)),
    *_weighted(ops.MATMUL, ROWS, when.MATRIX, channel_axis=1, fused=_FEW, rewrite=(write.as_linear,)),
    *_weighted(ops.CONV1D, when.SIGNAL),
    *_weighted(ops.CONV2D, when.IMAGE),
    *_weighted(ops.CONV3D, _VOLUME),
    *_weighted(
        ops.CONV_TRANSPOSE1D, when.SIGNAL, when.ONE_GROUP, SMALL_STRIDE, channel_axis=1, read=_SYMMETRIC
    ),
    *_weighted(
        ops.CONV_TRANSPOSE2D, when.IMAGE, when.ONE_GROUP, SMALL_STRIDE, channel_axis=1, read=_SYMMETRIC
    ),
)

#: What a weight of integers beside floats has at least, so that the kernel reads the integers.
_FEWEST_INPUTS, _FEWEST_OUTPUTS = 4, 2


def _is_large(outputs: int) -> Constraint:
    """The constraint that a weight is large enough; ``outputs`` is the dimension of its outputs."""

    def holds(match: Match) -> bool:
        (weight,) = match.inputs("weight")
        shape = weight.meta["val"].shape
        if len(shape) != 2:
            return False
        return bool(shape[1 - outputs] >= _FEWEST_INPUTS and shape[outputs] >= _FEWEST_OUTPUTS)

    text = f"the weight has {_FEWEST_INPUTS} inputs or more, and {_FEWEST_OUTPUTS} outputs or more"
    return Constraint("large_weight", text, holds)


def _alone(
    operator: ops.Operator, *only: Constraint, channel_axis: int = 0, rewrite: tuple[Rewrite, ...] = ()
) -> SupportRow:
    """Row of a product with a weight of integers, of floats and to floats."""
    return _row(
        operator,
        specs={"weight": (_WEIGHT,)},
        channel_axis=channel_axis,
        constraints=(when.CONSTANT_WEIGHT, *only, _is_large(channel_axis)),
        rewrite=rewrite,
    )


_WEIGHTS_ALONE = (
    _alone(ops.LINEAR, ROWS, when.MATRIX),
    _alone(ops.ADDMM, when.UNSCALED, when.BIAS_OF_CHANNELS, channel_axis=1, rewrite=(write.as_linear,)),
    _alone(ops.MATMUL, ROWS, when.MATRIX, channel_axis=1, rewrite=(write.as_linear,)),
)

_SAFE = (when.NOT_A_MASK, when.NO_NORMALIZATION)
_ELEMENTWISE = (
    _row(ops.ADD, ops.RELU, constraints=(when.NO_ALPHA, *_SAFE)),
    _row(ops.ADD, constraints=(when.NO_ALPHA, *_SAFE)),
    _row(ops.SUB, constraints=(when.NO_ALPHA, *_SAFE)),
)


def _has_no_ceil_mode(position: int) -> Constraint:
    """The constraint that windows end within the image; the argument has this position."""

    def holds(match: Match) -> bool:
        return not argument(match, position, "ceil_mode", False)

    # OpenVINO pools in floats where a window hangs over the end.
    return Constraint("ceil_mode", "ceil_mode is False", holds)


def _counts_no_padding(match: Match) -> bool:
    padding = argument(match, 3, "padding", 0)
    is_padded = any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
    return not (is_padded and argument(match, 5, "count_include_pad", True))


# OpenVINO pads integers with 0, which is their zero point only by chance.
PADDING_NOT_COUNTED = Constraint(
    "counted_padding", "it has no padding, or count_include_pad is False", _counts_no_padding
)


def _has_no_divisor(match: Match) -> bool:
    return argument(match, 6, "divisor_override") is None


# The average is padded and multiplied by operators of its own then.
NO_DIVISOR = Constraint("divisor", "divisor_override is None", _has_no_divisor)

_OTHERS = (
    _row(ops.CAT, sharing=Sharing.ALL, constraints=(when.TWO_OR_MORE,)),
    _row(ops.ADAPTIVE_AVG_POOL2D, constraints=(when.IMAGE, when.POOLS_TO_ONE_PIXEL)),
    _row(ops.AVG_POOL2D, constraints=(when.IMAGE, _has_no_ceil_mode(4), PADDING_NOT_COUNTED, NO_DIVISOR)),
    _row(ops.MEAN, constraints=(when.IMAGE, when.MEAN_OVER_IMAGE)),
    _row(ops.MAX_POOL2D, sharing=Sharing.FOLLOWS_INPUT, constraints=(when.IMAGE, _has_no_ceil_mode(5))),
)


def _pads_one_dimension(match: Match) -> bool:
    padding = argument(match, 1, "pad", ())
    pairs = zip(padding[::2], padding[1::2], strict=True)
    return sum(any(pair) for pair in pairs) == 1


# OpenVINO pads in floats, and joins zeros as integers once, not to what zeros were joined to.
ONE_DIMENSION = Constraint("one_dimension", "it pads one dimension", _pads_one_dimension)


def _follows(
    operator: ops.Operator,
    *constraints: Constraint,
    read: AllowedSpec = _ACTIVATION,
    rewrite: tuple[Rewrite, ...] = (),
) -> SupportRow:
    """A data-movement operator: it keeps the parameters of its input."""
    return _row(
        operator,
        specs={"input_activation": (read,), "output_activation": (read,)},
        sharing=Sharing.FOLLOWS_INPUT,
        constraints=constraints,
        rewrite=rewrite,
    )


_FOLLOWING = (
    *map(
        _follows,
        (ops.PERMUTE, ops.TRANSPOSE, ops.T, ops.SWAPAXES, ops.MOVEDIM, ops.MATRIX_TRANSPOSE, ops.DROPOUT,
         ops.CONTIGUOUS, ops.DETACH, ops.SLICE, ops.NARROW, ops.SELECT, ops.VIEW, ops.RESHAPE, ops.VIEW_AS,
         ops.FLATTEN, ops.UNFLATTEN, ops.SQUEEZE, ops.UNSQUEEZE, ops.PIXEL_SHUFFLE, ops.PIXEL_UNSHUFFLE,
         ops.CHANNEL_SHUFFLE, ops.FLIP),
    ),
    _follows(
        ops.PAD,
        when.STATIC_SHAPE,
        when.ZEROS,
        ONE_DIMENSION,
        read=_AFFINE,
        rewrite=(write.as_cat_with_zeros,),
    ),
)  # fmt: skip

_REFUSALS = (
    Refusal(ops.MUL, "the kernel of a product of two tensors computes in float"),
    Refusal(ops.DIV, "the kernel of a quotient computes in float"),
    *(Refusal(op, "the kernel computes in float") for op in (ops.ROLL, ops.REPEAT, ops.SOFTMAX)),
)

SUPPORT = SupportTable(
    "openvino", (*_WEIGHTED, *_WEIGHTS_ALONE, *_ELEMENTWISE, *_OTHERS, *_FOLLOWING), _REFUSALS
)
