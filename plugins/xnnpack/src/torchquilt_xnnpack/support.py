"""Support table of XNNPACK: the one table that is both queried and annotated from.

The rows follow ``partition/config`` of ExecuTorch 1.5's XNNPACK delegate. Importing this module does
not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from torchquilt import (
    AllowedSpec,
    ArithmeticLimits,
    Constraint,
    OperatorPattern,
    Refusal,
    Sharing,
    SupportRow,
    SupportTable,
)
from torchquilt.backend import operators as ops
from torchquilt_xnnpack import conditions as when
from torchquilt_xnnpack.ranges import NO_NORMALIZATION, NOT_A_MASK
from torchquilt_xnnpack.specs import GROUP_SIZES

_TARGETS = ("executorch",)

# To the delegate a weight of just this range has 4 bits, whatever the kernel.
_INT4_RANGE = (-8, 7)

_ACTIVATION = AllowedSpec("int8", -128, 127, ("per_tensor",), symmetric=False)
_TOKENS = AllowedSpec("int8", -128, 127, ("per_token",), symmetric=False, is_dynamic=True, exact_range=True)
_INPUT = AllowedSpec(
    "int8", -128, 127, ("per_token", "per_tensor"), symmetric=False, is_dynamic=True, exact_range=True
)


def _int8(*granularities: str) -> AllowedSpec:
    return AllowedSpec(
        "int8", -128, 127, granularities, symmetric=True, ch_axis=0, excluded_ranges=(_INT4_RANGE,)
    )


_WEIGHT = _int8("per_tensor", "per_axis")
_ONE_SCALE = _int8("per_tensor")
# The dynamic kernels read one scale for each output channel. A weight with one scale in all would be taken
# for a float32 one by the delegate, and come out wrong.
_CHANNELS = _int8("per_axis")
_INT4 = AllowedSpec("int8", *_INT4_RANGE, ("per_axis",), symmetric=True, ch_axis=0, exact_range=True)


def _int4_groups(size: int) -> AllowedSpec:
    return AllowedSpec(
        "int8", *_INT4_RANGE, ("per_group",), symmetric=True, group_sizes=(size,), exact_range=True
    )


_STATIC = {"input_activation": (_ACTIVATION,), "output_activation": (_ACTIVATION,)}

# Kernels with weights are not made for a ratio of 256 and more, so the program does not load. Those of two
# tensors are made, and come out wrong from somewhere between 2**18 and 2**20 on; XNNPACK's sources promise
# less than 2**8. No ratio is too small: what is less than half a step of the output becomes 0.
_OF_WEIGHTS = ArithmeticLimits(accumulator_bits=32, product_ratio=256)
_OF_SUMS = ArithmeticLimits(input_ratio=256)
_OF_PRODUCTS = ArithmeticLimits(product_ratio=256)


def _row(
    *operators: ops.Operator,
    specs: Mapping[str, tuple[AllowedSpec, ...]] = _STATIC,
    sharing: Sharing = Sharing.NONE,
    constraints: tuple[Constraint, ...] = (),
    suffix: str = "",
    anchor_index: int = 0,
    channel_axis: int = 0,
    one_range_for_input: bool = False,
    limits: ArithmeticLimits | None = None,
    dtypes: Constraint = when.FLOAT32,
) -> SupportRow:
    pattern = OperatorPattern.of(*operators, anchor_index=anchor_index)
    if "weight" in specs and "output_activation" in specs:
        limits = _OF_WEIGHTS
    return SupportRow(
        attrs.evolve(pattern, name=pattern.name + suffix),
        specs,
        sharing=sharing,
        constraints=(dtypes, when.DIMENSIONS, *constraints),
        targets=_TARGETS,
        channel_axis=channel_axis,
        one_range_for_input=one_range_for_input,
        limits=limits,
        profitable_alone="weight" in specs,  # what has none costs little more than what converts for it
    )


# What XNNPACK computes in the same kernel as the operator before it, and what does not stand there.
_FUSED: tuple[tuple[tuple[ops.Operator, ...], tuple[Constraint, ...]], ...] = (
    *(((activation,), ()) for activation in (ops.RELU, ops.RELU6, ops.HARDTANH)),
    ((ops.CLAMP,), (when.TWO_BOUNDS,)),
    ((), ()),
)

# Operator, axis of the weight's output channels, conditions. The last two are written as linear.
_LINEARS = (
    (ops.LINEAR, 0, (when.MATRIX, when.BIAS_OF_CHANNELS)),
    (ops.ADDMM, 1, (when.UNSCALED, when.BIAS_OF_CHANNELS)),
    (ops.MATMUL, 1, (when.MATRIX,)),
)
_CONVOLUTIONS = ((ops.CONV1D, when.SIGNAL), (ops.CONV2D, when.IMAGE))
_TRANSPOSED = ((ops.CONV_TRANSPOSE1D, when.SIGNAL), (ops.CONV_TRANSPOSE2D, when.IMAGE))

_STATIC_WEIGHTED = (
    *(
        _row(operator, *after, specs={**_STATIC, "weight": (weight,)}, suffix=suffix, channel_axis=axis,
             constraints=(when.CONSTANT_WEIGHT, *conditions, *bits, *more))
        for operator, axis, conditions in _LINEARS
        for weight, suffix, bits in ((_WEIGHT, "", ()), (_INT4, "_int4", (when.EVEN_INPUTS,)))
        for after, more in _FUSED
    ),
    *(
        _row(operator, *after, specs={**_STATIC, "weight": (_WEIGHT,)},
             constraints=(when.CONSTANT_WEIGHT, rank, *more))
        for operator, rank in _CONVOLUTIONS
        for after, more in _FUSED
    ),
    *(
        _row(ops.PAD, operator, *after, specs={**_STATIC, "weight": (_WEIGHT,)}, anchor_index=1,
             constraints=(when.CONSTANT_WEIGHT, rank, when.ZEROS, when.PADS_IMAGE, *more))
        for operator, rank in _CONVOLUTIONS
        for after, more in _FUSED
    ),
    *(
        _row(operator, *after, specs={**_STATIC, "weight": (weight,)}, suffix=suffix, channel_axis=1,
             constraints=(when.CONSTANT_WEIGHT, rank, groups, *more))
        for operator, rank in _TRANSPOSED
        for weight, suffix, groups in (
            (_WEIGHT, "", when.ONE_GROUP), (_ONE_SCALE, "_grouped", when.SEVERAL_GROUPS)
        )
        for after, more in _FUSED
    ),
)  # fmt: skip

_DYNAMIC = (
    *(
        _row(operator, specs={"input_activation": (_TOKENS,), "weight": (weight,)}, suffix=suffix,
             channel_axis=axis, dtypes=when.FLOAT32_OR_16,
             constraints=(when.CONSTANT_WEIGHT, *conditions, *bits))
        for operator, axis, conditions in _LINEARS
        for weight, suffix, bits in (
            (_CHANNELS, "", ()),
            (_INT4, "_int4", (when.EVEN_INPUTS,)),
            *(
                (_int4_groups(size), f"_int4_group{size}", (when.divides_into_groups(size),))
                for size in GROUP_SIZES
            ),
        )
    ),
    *(
        _row(operator, specs={"input_activation": (_INPUT,), "weight": (_CHANNELS,)}, channel_axis=axis,
             one_range_for_input=True,
             constraints=(when.CONSTANT_WEIGHT, when.IMAGE, when.ONE_SAMPLE, when.NOT_DEPTHWISE, *conditions))
        for operator, axis, conditions in (
            (ops.CONV2D, 0, (when.NOT_POINTWISE, when.EVEN_PADDING)),
            (ops.CONV_TRANSPOSE2D, 1, (when.ONE_GROUP,)),
        )
    ),
    # Written as a linear over channels: it has parameters for each pixel, in as many samples as there are.
    _row(ops.CONV2D, specs={"input_activation": (_TOKENS,), "weight": (_CHANNELS,)}, suffix="_pointwise",
         dtypes=when.FLOAT32_OR_16, constraints=(when.CONSTANT_WEIGHT, when.IMAGE, when.POINTWISE)),
)  # fmt: skip

# The delegate fuses relu into an integer addition, but would multiply and subtract in float with a relu
# behind it; so a relu after these is a row of its own, below.
_SAFE = (NOT_A_MASK, NO_NORMALIZATION)
_ELEMENTWISE = (
    _row(ops.ADD, ops.RELU, limits=_OF_SUMS, constraints=(when.NO_ALPHA, *_SAFE)),
    _row(ops.ADD, limits=_OF_SUMS, constraints=(when.NO_ALPHA, *_SAFE)),
    _row(ops.SUB, limits=_OF_SUMS, constraints=(when.NO_ALPHA, *_SAFE)),
    _row(ops.MUL, limits=_OF_PRODUCTS, constraints=_SAFE),
    # Written as a subtraction the other way round, and as a multiplication.
    _row(ops.RSUB, limits=_OF_SUMS, constraints=(when.NO_THIRD, *_SAFE)),
    _row(ops.DIV, limits=_OF_PRODUCTS, constraints=(when.BY_A_NUMBER, *_SAFE)),
)

_OTHERS = (
    _row(ops.CAT, sharing=Sharing.ALL, constraints=(when.TWO_OR_MORE,)),
    # Written as cat and reshape.
    _row(ops.STACK, sharing=Sharing.ALL, constraints=(when.TWO_OR_MORE, when.ONE_UNKNOWN)),
    *(
        _row(op, sharing=Sharing.ALL, constraints=(when.TWO_OR_MORE, when.ONE_RANK, when.ONE_UNKNOWN))
        for op in (ops.HSTACK, ops.VSTACK, ops.DSTACK, ops.COLUMN_STACK)
    ),
    _row(
        ops.ADAPTIVE_AVG_POOL2D,
        sharing=Sharing.OUTPUT_AS_INPUT,
        constraints=(when.IMAGE, when.POOLS_TO_ONE_PIXEL),
    ),
    _row(
        ops.MEAN,
        sharing=Sharing.FOLLOWS_INPUT,
        constraints=(when.IMAGE, when.MEAN_OVER_IMAGE, when.ONE_UNKNOWN),
    ),
    _row(
        ops.MAX_POOL2D,
        sharing=Sharing.FOLLOWS_INPUT,
        constraints=(when.CEIL_MODE_IS_STATIC, when.EVERY_PIXEL),
    ),
)

# Data-movement operators, and those that clip, keep the parameters of their input.
_FOLLOWING = (
    *(_row(op, sharing=Sharing.FOLLOWS_INPUT) for op in (ops.RELU, ops.RELU6, ops.HARDTANH, ops.CLAMP)),
    *(_row(op, sharing=Sharing.FOLLOWS_INPUT) for op in (ops.PERMUTE, ops.TRANSPOSE, ops.T, ops.DROPOUT)),
    *(_row(op, sharing=Sharing.FOLLOWS_INPUT) for op in (ops.CONTIGUOUS, ops.TO)),
    _row(ops.SLICE, sharing=Sharing.FOLLOWS_INPUT, constraints=(when.STATIC_SHAPE, when.STEP_OF_ONE)),
    # Written as permute, and as clone.
    *(_row(op, sharing=Sharing.FOLLOWS_INPUT) for op in (ops.SWAPAXES, ops.MOVEDIM, ops.MATRIX_TRANSPOSE)),
    _row(ops.DETACH, sharing=Sharing.FOLLOWS_INPUT),
    # Written as slice.
    _row(ops.NARROW, sharing=Sharing.FOLLOWS_INPUT, constraints=(when.STATIC_SHAPE, when.STATIC_START)),
    # Written as reshape, select as a slice before it, and pad as cat with zeros.
    *(
        _row(op, sharing=Sharing.FOLLOWS_INPUT, constraints=(when.ONE_UNKNOWN,))
        for op in (
            ops.VIEW,
            ops.RESHAPE,
            ops.VIEW_AS,
            ops.FLATTEN,
            ops.UNFLATTEN,
            ops.SQUEEZE,
            ops.UNSQUEEZE,
            ops.ATLEAST,
        )
    ),
    *(
        _row(op, sharing=Sharing.FOLLOWS_INPUT, constraints=(when.ONE_UNKNOWN, when.REPEATS_NOTHING))
        for op in (ops.EXPAND, ops.REPEAT)
    ),
    # Written as reshape, permute and reshape.
    *(
        _row(op, sharing=Sharing.FOLLOWS_INPUT, constraints=(when.IMAGE, when.STATIC_SHAPE))
        for op in (ops.PIXEL_SHUFFLE, ops.PIXEL_UNSHUFFLE, ops.CHANNEL_SHUFFLE)
    ),
    _row(ops.SELECT, sharing=Sharing.FOLLOWS_INPUT, constraints=(when.STATIC_INDEX,)),
    _row(ops.PAD, sharing=Sharing.FOLLOWS_INPUT, constraints=(when.STATIC_SHAPE, when.ZEROS)),
)

_MAXIMUM = ops.Operator("amax", ("aten.amax.default", "aten.amin.default"), (), ("torch.amax", "torch.amin"))
_MEAN_OF_ALL = ops.Operator("mean_of_all", ("aten.mean.default",), ())
_REFUSALS = (
    *(
        Refusal(op, "the delegate has no kernel that puts elements in another order")
        for op in (ops.FLIP, ops.ROLL, ops.INDEX_SELECT)
    ),
    Refusal(_MAXIMUM, "the delegate has no kernel of integers for it"),
    Refusal(_MEAN_OF_ALL, "the delegate takes means over height and width of images only"),
)

SUPPORT = SupportTable(
    "xnnpack", (*_STATIC_WEIGHTED, *_DYNAMIC, *_ELEMENTWISE, *_OTHERS, *_FOLLOWING), _REFUSALS
)
