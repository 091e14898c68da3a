"""What XNNPACK runs as integers: the one table that is both queried and annotated from.

The rows follow ``partition/config`` of ExecuTorch 1.5's XNNPACK delegate. Importing this module does
not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from torchquilt import AllowedSpec, Constraint, OperatorPattern, Sharing, SupportRow, SupportTable
from torchquilt import operators as ops
from torchquilt_xnnpack import conditions as when

_TARGETS = ("executorch",)

_ACTIVATION = AllowedSpec("int8", -128, 127, ("per_tensor",), symmetric=False)
_TOKENS = AllowedSpec("int8", -128, 127, ("per_token",), symmetric=False, is_dynamic=True, exact_range=True)
_WEIGHT = AllowedSpec("int8", -128, 127, ("per_tensor", "per_axis"), symmetric=True, ch_axis=0)
# The dynamic kernels read one scale for each output channel. A weight with one scale in all would be taken
# for a float32 one by the delegate, and come out wrong.
_CHANNELS = AllowedSpec("int8", -128, 127, ("per_axis",), symmetric=True, ch_axis=0)

_STATIC = {"input_activation": (_ACTIVATION,), "output_activation": (_ACTIVATION,)}
_STATIC_WEIGHTED = {**_STATIC, "weight": (_WEIGHT,)}
_DYNAMIC_WEIGHTED = {"input_activation": (_TOKENS,), "weight": (_CHANNELS,)}


def _row(
    *operators: ops.Operator,
    specs: Mapping[str, tuple[AllowedSpec, ...]] = _STATIC,
    sharing: Sharing = Sharing.NONE,
    constraints: tuple[Constraint, ...] = (),
) -> SupportRow:
    return SupportRow(
        OperatorPattern.of(*operators),
        specs,
        sharing=sharing,
        constraints=(when.FLOAT32, *constraints),
        targets=_TARGETS,
    )


# What XNNPACK computes in the same kernel as the operator before it.
_FUSED = (ops.RELU, ops.RELU6, ops.HARDTANH)

_WEIGHTED = tuple(
    _row(operator, *after, specs=_STATIC_WEIGHTED, constraints=(when.CONSTANT_WEIGHT, *conditions))
    for operator in (ops.LINEAR, ops.CONV1D, ops.CONV2D)
    for after, conditions in (
        *(((activation,), ()) for activation in _FUSED),
        ((ops.CLAMP,), (when.TWO_BOUNDS,)),
        ((), ()),
    )
)

_DYNAMIC = (_row(ops.LINEAR, specs=_DYNAMIC_WEIGHTED, constraints=(when.CONSTANT_WEIGHT,)),)

# The delegate fuses relu into an integer addition, but would multiply in float with a relu behind it; so a
# relu after a multiplication is a row of its own, below.
_ELEMENTWISE = (
    _row(ops.ADD, ops.RELU, constraints=(when.NO_ALPHA, when.NOT_A_MASK, when.NO_NORMALIZATION)),
    _row(ops.ADD, constraints=(when.NO_ALPHA, when.NOT_A_MASK, when.NO_NORMALIZATION)),
    _row(ops.MUL, constraints=(when.NOT_A_MASK, when.NO_NORMALIZATION)),
)

_OTHERS = (
    _row(ops.CAT, sharing=Sharing.ALL, constraints=(when.TWO_OR_MORE,)),
    _row(
        ops.ADAPTIVE_AVG_POOL2D,
        sharing=Sharing.OUTPUT_AS_INPUT,
        constraints=(when.IMAGE, when.POOLS_TO_ONE_PIXEL),
    ),
    _row(ops.MEAN, sharing=Sharing.PASSED_ON, constraints=(when.IMAGE, when.MEAN_OVER_IMAGE)),
    _row(
        ops.MAX_POOL2D,
        sharing=Sharing.PASSED_ON,
        constraints=(when.CEIL_MODE_IS_STATIC, when.EVERY_PIXEL),
    ),
)

# What only moves numbers, or cuts them off, keeps the parameters of what it gets.
_PASSING_ON = (
    *(_row(op, sharing=Sharing.PASSED_ON) for op in (ops.RELU, ops.RELU6, ops.HARDTANH, ops.CLAMP)),
    *(_row(op, sharing=Sharing.PASSED_ON) for op in (ops.PERMUTE, ops.TRANSPOSE, ops.DROPOUT)),
    *(_row(op, sharing=Sharing.PASSED_ON, constraints=(when.PLAIN_SIZE,)) for op in (ops.VIEW, ops.RESHAPE)),
    _row(ops.FLATTEN, sharing=Sharing.PASSED_ON, constraints=(when.STATIC_SHAPE,)),
    _row(ops.SLICE, sharing=Sharing.PASSED_ON, constraints=(when.STATIC_SHAPE, when.STEP_OF_ONE)),
    # Written as reshape by the quantizer, since the delegate leaves most of them outside.
    *(
        _row(op, sharing=Sharing.PASSED_ON, constraints=(when.STATIC_SHAPE,))
        for op in (ops.SQUEEZE, ops.UNSQUEEZE)
    ),
)

SUPPORT = SupportTable("xnnpack", (*_WEIGHTED, *_DYNAMIC, *_ELEMENTWISE, *_OTHERS, *_PASSING_ON))
