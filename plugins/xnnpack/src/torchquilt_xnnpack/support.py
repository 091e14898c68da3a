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
from torchquilt.backend import Rewrite
from torchquilt.backend import constraints as when
from torchquilt.backend import operators as ops
from torchquilt.backend import rewrites as write
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
# The dynamic kernels read one scale for each output channel. The delegate would take a weight with a single
# scale for a float32 one, and compute something else.
_CHANNELS = _int8("per_axis")
_INT4 = AllowedSpec("int8", *_INT4_RANGE, ("per_axis",), symmetric=True, ch_axis=0, exact_range=True)


def _int4_groups(size: int) -> AllowedSpec:
    return AllowedSpec(
        "int8", *_INT4_RANGE, ("per_group",), symmetric=True, group_sizes=(size,), exact_range=True
    )


_STATIC = {"input_activation": (_ACTIVATION,), "output_activation": (_ACTIVATION,)}

# XNNPACK makes no kernel with weights for a ratio of 256 or more, so the program does not load. It makes
# kernels of two tensors, which are wrong from somewhere between 2**18 and 2**20 on; its sources promise less
# than 2**8. No ratio is too small: values under half a step of the output become 0.
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
    rewrite: tuple[Rewrite, ...] = (),
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
        profitable_alone="weight"
        in specs,  # without weights an operator costs little more than its conversions
        rewrite=rewrite,
    )


# Activations that XNNPACK fuses to the operator before them: operators, constraints, form. The last row is
# the operator without an activation.
_FUSED: tuple[tuple[tuple[ops.Operator, ...], tuple[Constraint, ...], tuple[Rewrite, ...]], ...] = (
    *(((activation,), (), ()) for activation in (ops.RELU, ops.RELU6, ops.HARDTANH)),
    ((ops.CLAMP,), (when.TWO_BOUNDS,), (write.as_hardtanh,)),
    ((), (), ()),
)


def _static(
    *operators: ops.Operator,
    only: tuple[Constraint, ...],
    weight: AllowedSpec = _WEIGHT,
    suffix: str = "",
    channel_axis: int = 0,
    rewrite: tuple[Rewrite, ...] = (),
) -> tuple[SupportRow, ...]:
    """Rows of a static operator with a weight, the last of those given, one for each entry of ``_FUSED``."""
    return tuple(
        _row(
            *operators,
            *after,
            specs={**_STATIC, "weight": (weight,)},
            suffix=suffix,
            anchor_index=len(operators) - 1,
            channel_axis=channel_axis,
            constraints=(when.CONSTANT_WEIGHT, *only, *more),
            rewrite=(*rewrite, *form, write.with_own_bias),
        )
        for after, more, form in _FUSED
    )


_OF_MATRIX = (when.MATRIX, when.BIAS_OF_CHANNELS)
_OF_SUM = (when.UNSCALED, when.BIAS_OF_CHANNELS)

_STATIC_WEIGHTED = (
    *_static(ops.LINEAR, only=_OF_MATRIX),
    *_static(ops.LINEAR, only=(*_OF_MATRIX, when.EVEN_INPUTS), weight=_INT4, suffix="_int4"),
    *_static(ops.ADDMM, only=_OF_SUM, channel_axis=1, rewrite=(write.as_linear,)),
    *_static(ops.ADDMM, only=(*_OF_SUM, when.EVEN_INPUTS), weight=_INT4, suffix="_int4", channel_axis=1,
             rewrite=(write.as_linear,)),
    *_static(ops.MATMUL, only=(when.MATRIX,), channel_axis=1, rewrite=(write.as_linear,)),
    *_static(ops.MATMUL, only=(when.MATRIX, when.EVEN_INPUTS), weight=_INT4, suffix="_int4", channel_axis=1,
             rewrite=(write.as_linear,)),
    *_static(ops.CONV1D, only=(when.SIGNAL,)),
    *_static(ops.CONV2D, only=(when.IMAGE,)),
    *_static(ops.PAD, ops.CONV1D, only=(when.SIGNAL, when.ZEROS, when.PADS_IMAGE)),
    *_static(ops.PAD, ops.CONV2D, only=(when.IMAGE, when.ZEROS, when.PADS_IMAGE)),
    *_static(ops.CONV_TRANSPOSE1D, only=(when.SIGNAL, when.ONE_GROUP), channel_axis=1),
    *_static(ops.CONV_TRANSPOSE1D, only=(when.SIGNAL, when.SEVERAL_GROUPS), weight=_ONE_SCALE,
             suffix="_grouped", channel_axis=1),
    *_static(ops.CONV_TRANSPOSE2D, only=(when.IMAGE, when.ONE_GROUP), channel_axis=1),
    *_static(ops.CONV_TRANSPOSE2D, only=(when.IMAGE, when.SEVERAL_GROUPS), weight=_ONE_SCALE,
             suffix="_grouped", channel_axis=1),
)  # fmt: skip

# Weight, its suffix in names of patterns, constraints.
_DYNAMIC_WEIGHTS: tuple[tuple[AllowedSpec, str, tuple[Constraint, ...]], ...] = (
    (_CHANNELS, "", ()),
    (_INT4, "_int4", (when.EVEN_INPUTS,)),
    *((_int4_groups(size), f"_int4_group{size}", (when.divides_into_groups(size),)) for size in GROUP_SIZES),
)


def _dynamic(
    operator: ops.Operator,
    only: tuple[Constraint, ...],
    channel_axis: int = 0,
    rewrite: tuple[Rewrite, ...] = (),
) -> tuple[SupportRow, ...]:
    """Rows of a product whose input has parameters for each row, with each kind of weight."""
    return tuple(
        _row(
            operator,
            specs={"input_activation": (_TOKENS,), "weight": (weight,)},
            suffix=suffix,
            channel_axis=channel_axis,
            dtypes=when.FLOAT32_OR_16,
            constraints=(when.CONSTANT_WEIGHT, *only, *more),
            rewrite=(*rewrite, write.with_stored_bias),
        )
        for weight, suffix, more in _DYNAMIC_WEIGHTS
    )


def _dynamic_image(operator: ops.Operator, only: tuple[Constraint, ...], channel_axis: int = 0) -> SupportRow:
    """Row of a convolution whose input has one set of parameters."""
    return _row(
        operator,
        specs={"input_activation": (_INPUT,), "weight": (_CHANNELS,)},
        channel_axis=channel_axis,
        one_range_for_input=True,
        constraints=(when.CONSTANT_WEIGHT, when.IMAGE, when.ONE_SAMPLE, when.NOT_DEPTHWISE, *only),
        rewrite=(write.with_stored_bias,),
    )


_DYNAMIC = (
    *_dynamic(ops.LINEAR, _OF_MATRIX),
    *_dynamic(ops.ADDMM, _OF_SUM, channel_axis=1, rewrite=(write.as_linear,)),
    *_dynamic(ops.MATMUL, (when.MATRIX,), channel_axis=1, rewrite=(write.as_linear,)),
    _dynamic_image(ops.CONV2D, (when.NOT_POINTWISE, when.EVEN_PADDING)),
    _dynamic_image(ops.CONV_TRANSPOSE2D, (when.ONE_GROUP,), channel_axis=1),
    # Written as a linear over channels, it has parameters for each pixel, and takes any number of samples.
    _row(
        ops.CONV2D,
        specs={"input_activation": (_TOKENS,), "weight": (_CHANNELS,)},
        suffix="_pointwise",
        dtypes=when.FLOAT32_OR_16,
        constraints=(when.CONSTANT_WEIGHT, when.IMAGE, when.POINTWISE),
        rewrite=(write.as_linear_of_pixels, write.with_stored_bias),
    ),
)

# The delegate fuses relu into an integer addition. With a relu fused it would multiply and subtract in float,
# so a relu behind these has a row of its own, below.
_SAFE = (when.NOT_A_MASK, when.NO_NORMALIZATION)
_ELEMENTWISE = (
    _row(ops.ADD, ops.RELU, limits=_OF_SUMS, constraints=(when.NO_ALPHA, *_SAFE)),
    _row(ops.ADD, limits=_OF_SUMS, constraints=(when.NO_ALPHA, *_SAFE)),
    _row(ops.SUB, limits=_OF_SUMS, constraints=(when.NO_ALPHA, *_SAFE)),
    _row(ops.MUL, limits=_OF_PRODUCTS, constraints=_SAFE),
    _row(ops.RSUB, limits=_OF_SUMS, constraints=(when.NO_THIRD, *_SAFE), rewrite=(write.as_sub,)),
    _row(ops.DIV, limits=_OF_PRODUCTS, constraints=(when.BY_A_NUMBER, *_SAFE), rewrite=(write.as_mul,)),
)

_OTHERS = (
    _row(ops.CAT, sharing=Sharing.ALL, constraints=(when.TWO_OR_MORE,)),
    _row(
        ops.STACK,
        sharing=Sharing.ALL,
        constraints=(when.TWO_OR_MORE, when.ONE_UNKNOWN),
        rewrite=(write.as_cat_and_reshape,),
    ),
    *(
        _row(
            op,
            sharing=Sharing.ALL,
            constraints=(when.TWO_OR_MORE, when.ONE_RANK, when.ONE_UNKNOWN),
            rewrite=(write.as_cat,),
        )
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
        rewrite=(write.as_mean_of_image,),
    ),
    _row(
        ops.MAX_POOL2D,
        sharing=Sharing.FOLLOWS_INPUT,
        constraints=(when.IMAGE, when.CEIL_MODE_IS_STATIC, when.EVERY_PIXEL),
    ),
)


def _follows(
    operator: ops.Operator, rewrite: Rewrite | None = None, constraints: tuple[Constraint, ...] = ()
) -> SupportRow:
    """A data-movement operator, or one that clips: it keeps the parameters of its input."""
    rewrites = () if rewrite is None else (rewrite,)
    return _row(operator, sharing=Sharing.FOLLOWS_INPUT, constraints=constraints, rewrite=rewrites)


_PLAIN = (ops.RELU, ops.RELU6, ops.HARDTANH, ops.CLAMP, ops.PERMUTE, ops.TRANSPOSE, ops.DROPOUT,
          ops.CONTIGUOUS, ops.TO)  # fmt: skip
_SIZED = (when.ONE_UNKNOWN,)
_MOVED = (when.IMAGE, when.STATIC_SHAPE)
_FOLLOWING = (
    *map(_follows, _PLAIN),
    _follows(ops.T, None, (when.input_rank(2),)),  # that of a vector is the vector itself
    _follows(ops.SLICE, None, (when.STATIC_SHAPE, when.STEP_OF_ONE)),
    _follows(ops.SWAPAXES, write.as_permute),
    _follows(ops.MOVEDIM, write.as_permute),
    _follows(ops.MATRIX_TRANSPOSE, write.as_permute),
    _follows(ops.DETACH, write.as_clone),
    _follows(ops.NARROW, write.as_slice, (when.STATIC_SHAPE, when.STATIC_START)),
    _follows(ops.VIEW, write.as_plain_reshape, _SIZED),
    _follows(ops.RESHAPE, write.as_plain_reshape, _SIZED),
    _follows(ops.VIEW_AS, write.as_reshape, _SIZED),
    _follows(ops.FLATTEN, write.as_plain_reshape, _SIZED),
    _follows(ops.UNFLATTEN, write.as_reshape, _SIZED),
    _follows(ops.SQUEEZE, write.as_reshape, _SIZED),
    _follows(ops.UNSQUEEZE, write.as_reshape, _SIZED),
    _follows(ops.ATLEAST, write.as_reshape, _SIZED),
    _follows(ops.EXPAND, write.as_reshape, (*_SIZED, when.REPEATS_NOTHING)),
    _follows(ops.REPEAT, write.as_reshape, (*_SIZED, when.REPEATS_NOTHING)),
    _follows(ops.PIXEL_SHUFFLE, write.as_permuted_parts, _MOVED),
    _follows(ops.PIXEL_UNSHUFFLE, write.as_permuted_parts, _MOVED),
    _follows(ops.CHANNEL_SHUFFLE, write.as_permuted_parts, _MOVED),
    _follows(ops.SELECT, write.as_slice_of_one, (when.STATIC_INDEX,)),
    _follows(ops.PAD, write.as_cat_with_zeros, (when.STATIC_SHAPE, when.ZEROS)),
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
