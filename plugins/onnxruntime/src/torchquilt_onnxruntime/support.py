"""Support table of ONNX Runtime: the one table that is both queried and annotated from.

Each row is what the CPU kernels of ONNX Runtime 1.32 do, as the optimized model shows:
``tests/plugins/onnxruntime/test_measured.py`` measures it. Importing this module does not import torch.
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
from torchquilt.backend import (
    Match,
    Operand,
    Operator,
    Part,
    Rewrite,
    argument,
    input_rank,
    overload_name,
    part,
)
from torchquilt.backend import constraints as when
from torchquilt.backend import operators as ops
from torchquilt.backend import rewrites as write
from torchquilt_onnxruntime.specs import GROUP_SIZES

_TARGETS = ("onnxruntime",)

# The kernels read and write all of uint8. The runtime makes uint8 of int8 on x86, though not where an
# operator of integers stands between, so int8 is not offered.
_ACTIVATION = AllowedSpec("uint8", 0, 255, ("per_tensor",), symmetric=False, exact_range=True)
_INPUT = attrs.evolve(_ACTIVATION, is_dynamic=True)

# A weight of just this range is stored in 4 bits.
_INT4_RANGE = (-8, 7)
_WEIGHT = AllowedSpec(
    "int8", -128, 127, ("per_tensor", "per_axis"), symmetric=True, ch_axis=0, excluded_ranges=(_INT4_RANGE,)
)
_INT4 = AllowedSpec("int8", *_INT4_RANGE, ("per_axis",), symmetric=True, ch_axis=0, exact_range=True)


def _int4_groups(size: int) -> AllowedSpec:
    return attrs.evolve(_INT4, granularities=("per_group",), ch_axis=None, group_sizes=(size,))


_STATIC = {"input_activation": (_ACTIVATION,), "output_activation": (_ACTIVATION,)}
_OF_WEIGHTS = ArithmeticLimits(accumulator_bits=32)

VOLUME = input_rank(5)
_TWO_ACTIVATIONS = Operator(
    "matmul",
    ("aten.matmul.default", "aten.mm.default", "aten.bmm.default"),
    (Operand("input_activation", 0, "self"), Operand("input_activation", 1, "other")),
    ("torch.bmm",),
)


def _bounds_are_numbers(match: Match) -> bool:
    node = match.output
    if overload_name(node) not in ops.CLAMP.overloads:
        return True
    return all(isinstance(bound, (int, float, type(None))) for bound in node.args[1:])


NUMBERS = Constraint("bounds", "the bounds of a clamp are numbers", _bounds_are_numbers)


def _chain(*operators: ops.Operator) -> Part:
    """Operators one after the other, of which the last does the work."""
    read: tuple[Part, ...] = ()
    for operator in operators:
        read = (part(operator, *read, does_the_work=operator is operators[-1]),)
    return read[0]


# An activation behind another operator costs nothing: that writes integers which end where the activation
# does, or which a Clip of integers cuts off.
_ACTIVATIONS = (ops.RELU, ops.RELU6, ops.HARDTANH, ops.CLAMP)


def _row(
    *operators: ops.Operator,
    specs: Mapping[str, tuple[AllowedSpec, ...]] = _STATIC,
    sharing: Sharing = Sharing.NONE,
    constraints: tuple[Constraint, ...] = (),
    suffix: str = "",
    channel_axis: int = 0,
    takes_activation: bool = False,
    profitable_alone: bool = False,
    rewrite: tuple[Rewrite, ...] = (),
) -> SupportRow:
    root = _chain(*operators)
    if takes_activation:
        root = part(_ACTIVATIONS, root, is_optional=True)
        constraints = (*constraints, NUMBERS)
    name = "_".join(operator.name for operator in operators)
    has_weight = "weight" in specs
    return SupportRow(
        OperatorPattern.tree(root, name=name + suffix),
        specs,
        sharing=sharing,
        constraints=(when.FLOAT32, when.DIMENSIONS, *constraints),
        targets=_TARGETS,
        channel_axis=channel_axis,
        limits=_OF_WEIGHTS if has_weight and "output_activation" in specs else None,
        # Without weights an operator costs little more than its conversions.
        profitable_alone=has_weight or profitable_alone,
        rewrite=rewrite,
    )


def _static(
    *operators: ops.Operator,
    only: tuple[Constraint, ...],
    channel_axis: int = 0,
    rewrite: tuple[Rewrite, ...] = (),
) -> SupportRow:
    """Row of a static operator with a weight, the last of those given."""
    return _row(
        *operators,
        specs={**_STATIC, "weight": (_WEIGHT,)},
        channel_axis=channel_axis,
        constraints=(when.CONSTANT_WEIGHT, *only),
        takes_activation=True,
        rewrite=(*rewrite, write.with_stored_bias),
    )


_OF_MATRIX = (when.MATRIX, when.BIAS_OF_CHANNELS)
_OF_SUM = (when.UNSCALED, when.BIAS_OF_CHANNELS)
_PADDED = (when.ZEROS, when.PADS_IMAGE)

_STATIC_WEIGHTED = (
    _static(ops.LINEAR, only=_OF_MATRIX),
    _static(ops.ADDMM, only=_OF_SUM, channel_axis=1, rewrite=(write.as_linear,)),
    _static(ops.MATMUL, only=(when.MATRIX,), channel_axis=1, rewrite=(write.as_linear,)),
    _static(ops.CONV1D, only=(when.SIGNAL,)),
    _static(ops.CONV2D, only=(when.IMAGE,)),
    _static(ops.CONV3D, only=(VOLUME,)),
    _static(ops.PAD, ops.CONV1D, only=(when.SIGNAL, *_PADDED)),
    _static(ops.PAD, ops.CONV2D, only=(when.IMAGE, *_PADDED)),
)


def _product(
    specs: Mapping[str, tuple[AllowedSpec, ...]], suffix: str = "", *only: Constraint
) -> tuple[SupportRow, ...]:
    """Rows of a matrix product whose output stays in float, in each way of writing one."""
    kinds: tuple[tuple[ops.Operator, tuple[Constraint, ...], int, tuple[Rewrite, ...]], ...] = (
        (ops.LINEAR, _OF_MATRIX, 0, ()),
        (ops.ADDMM, _OF_SUM, 1, (write.as_linear,)),
        (ops.MATMUL, (when.MATRIX,), 1, (write.as_linear,)),
    )
    return tuple(
        _row(
            operator,
            specs=specs,
            suffix=suffix,
            channel_axis=axis,
            constraints=(when.CONSTANT_WEIGHT, *constraints, *only),
            rewrite=(*rewrite, write.with_stored_bias),
        )
        for operator, constraints, axis, rewrite in kinds
    )


_DYNAMIC = _product({"input_activation": (_INPUT,), "weight": (_WEIGHT,)})


_WEIGHT_ONLY = (
    *_product({"weight": (_WEIGHT,)}),
    *_product({"weight": (_INT4,)}, "_int4"),
    *(
        row
        for size in GROUP_SIZES
        for row in _product(
            {"weight": (_int4_groups(size),)}, f"_int4_group{size}", when.divides_into_groups(size)
        )
    ),
)

_SAFE = (when.NOT_A_MASK, when.NO_NORMALIZATION)


def _is_a_number(match: Match) -> bool:
    return len(match.scalars) == 1


A_NUMBER = Constraint("a_number", "it subtracts a number", _is_a_number)


def _reads_no_constant(match: Match) -> bool:
    return not any(match.is_constant(node) for node in match.inputs("input_activation"))


ACTIVATIONS = Constraint("activations", "both matrices are computed from inputs", _reads_no_constant)


def _has_dims(match: Match) -> bool:
    return all(node.meta["val"].dim() >= 2 for node in match.inputs("input_activation"))


MATRICES = Constraint("matrices", "both tensors have at least two dimensions", _has_dims)

# Scores to which a mask was added end at the lowest number that there is, and no scale holds both.
_MASKING = frozenset(
    (*ops.ADD.overloads, *ops.SUB.overloads, *ops.WHERE.overloads, "aten.masked_fill.Scalar",
     "aten.masked_fill.Tensor", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
)  # fmt: skip


def _reads_no_sum(match: Match) -> bool:
    return not any(overload_name(node) in _MASKING for node in match.inputs("input_activation"))


UNMASKED = Constraint(
    "unmasked", "it does not read a sum or a choice, which may be masked scores of attention", _reads_no_sum
)

_ELEMENTWISE = (
    _row(ops.ADD, takes_activation=True, constraints=(when.NO_ALPHA, *_SAFE)),
    _row(ops.MUL, takes_activation=True, constraints=_SAFE),
    _row(
        ops.SUB,
        constraints=(when.NO_ALPHA, A_NUMBER, *_SAFE),
        rewrite=(write.as_sum_with_opposite,),
    ),
    _row(ops.DIV, constraints=(when.BY_A_NUMBER, *_SAFE), rewrite=(write.as_mul,)),
    _row(ops.SIGMOID, constraints=_SAFE),
    _row(ops.SILU, constraints=_SAFE, rewrite=(write.as_product_with_sigmoid,)),
    _row(ops.LEAKY_RELU, constraints=_SAFE),
    _row(ops.WHERE, constraints=_SAFE),
    _row(ops.SOFTMAX, constraints=(UNMASKED,)),
    _row(_TWO_ACTIVATIONS, suffix="_of_activations", constraints=(ACTIVATIONS, MATRICES),
         profitable_alone=True),
)  # fmt: skip


def _counts_all(match: Match) -> bool:
    return argument(match, 6, "divisor_override") is None


NO_DIVISOR = Constraint("divisor", "the divisor is the size of the kernel", _counts_all)


def _has_no_ceil_mode(match: Match) -> bool:
    return not argument(match, 4, "ceil_mode", False)


# Where a window hangs over the end, torch and ONNX count its elements differently.
NO_CEIL_MODE = Constraint("ceil_mode", "ceil_mode is False", _has_no_ceil_mode)


_RANKED = ((ops.MAX_POOL1D, ops.AVG_POOL1D, when.SIGNAL), (ops.MAX_POOL2D, ops.AVG_POOL2D, when.IMAGE),
           (ops.MAX_POOL3D, ops.AVG_POOL3D, VOLUME))  # fmt: skip

_OTHERS = (
    _row(ops.CAT, constraints=(when.TWO_OR_MORE,)),
    _row(ops.STACK, constraints=(when.TWO_OR_MORE, when.ONE_UNKNOWN), rewrite=(write.as_cat_and_reshape,)),
    *(
        _row(
            operator,
            constraints=(when.TWO_OR_MORE, when.ONE_RANK, when.ONE_UNKNOWN),
            rewrite=(write.as_cat,),
        )
        for operator in (ops.HSTACK, ops.VSTACK, ops.DSTACK, ops.COLUMN_STACK)
    ),
    _row(ops.ADAPTIVE_AVG_POOL2D, constraints=(when.IMAGE, when.POOLS_TO_ONE_PIXEL)),
    _row(
        ops.MEAN,
        constraints=(when.IMAGE, when.MEAN_OVER_IMAGE, when.ONE_UNKNOWN),
        rewrite=(write.as_global_average,),
    ),
    *(_row(pool, constraints=(rank, NO_CEIL_MODE, NO_DIVISOR)) for _, pool, rank in _RANKED),
    *(_row(pool, sharing=Sharing.FOLLOWS_INPUT, constraints=(rank,)) for pool, _, rank in _RANKED),
)


def _follows(
    operator: ops.Operator, rewrite: Rewrite | None = None, constraints: tuple[Constraint, ...] = ()
) -> SupportRow:
    """A data-movement operator, or one that clips: it keeps the parameters of its input."""
    rewrites = () if rewrite is None else (rewrite,)
    return _row(operator, sharing=Sharing.FOLLOWS_INPUT, constraints=constraints, rewrite=rewrites)


_PLAIN = (ops.RELU, ops.RELU6, ops.HARDTANH, ops.PERMUTE, ops.TRANSPOSE, ops.T, ops.DROPOUT, ops.CONTIGUOUS,
          ops.TO, ops.SLICE, ops.INDEX_SELECT)  # fmt: skip
_SIZED = (when.ONE_UNKNOWN,)
_FOLLOWING = (
    *map(_follows, _PLAIN),
    _follows(ops.CLAMP, None, (NUMBERS,)),
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
    _follows(ops.EXPAND),
    _follows(ops.REPEAT, write.as_reshape, (*_SIZED, when.REPEATS_NOTHING)),
    _follows(ops.PIXEL_SHUFFLE, write.as_permuted_parts, (when.IMAGE, when.STATIC_SHAPE)),
    _follows(ops.PIXEL_UNSHUFFLE, write.as_permuted_parts, (when.IMAGE, when.STATIC_SHAPE)),
    _follows(ops.CHANNEL_SHUFFLE, write.as_permuted_parts, (when.IMAGE, when.STATIC_SHAPE)),
    _follows(ops.SELECT, write.as_slice_of_one, (when.STATIC_INDEX,)),
    _follows(ops.PAD, write.as_cat_with_zeros, (when.STATIC_SHAPE, when.ZEROS)),
)

_NO_KERNEL = "ONNX Runtime has no kernel of integers for it"
_MEAN_OF_ALL = ops.Operator("mean_of_all", ("aten.mean.default",), ())
_REFUSALS = (
    *(Refusal(operator, _NO_KERNEL) for operator in (ops.CONV_TRANSPOSE1D, ops.CONV_TRANSPOSE2D, ops.RSUB)),
    Refusal(ops.ROLL, "ONNX has no operator for it, and its parts do not keep integers"),
    Refusal(_MEAN_OF_ALL, "ONNX Runtime averages integers over height and width of images only"),
)

SUPPORT = SupportTable(
    "onnxruntime",
    (*_STATIC_WEIGHTED, *_DYNAMIC, *_WEIGHT_ONLY, *_ELEMENTWISE, *_OTHERS, *_FOLLOWING),
    _REFUSALS,
)
