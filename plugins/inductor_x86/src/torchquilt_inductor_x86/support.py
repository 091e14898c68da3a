"""Support table of Inductor on x86: the one table that is both queried and annotated from.

The rows follow ``torch/_inductor/fx_passes/quantization.py`` of torch 2.13, as far as what it generates was
seen to compute with integers. Importing this module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import attrs

from torchquilt import AllowedSpec, Constraint, OperatorPattern, Refusal, SupportRow, SupportTable
from torchquilt.backend import Match, Operator, Rewrite, Value, one_dtype, part
from torchquilt.backend import constraints as when
from torchquilt.backend import operators as ops
from torchquilt.backend import rewrites as write

if TYPE_CHECKING:
    from torch.fx import Node

_TARGETS = ("inductor_x86",)

_ACTIVATION = AllowedSpec("uint8", 0, 255, ("per_tensor",), symmetric=False)
_AT_RUN_TIME = attrs.evolve(_ACTIVATION, is_dynamic=True)
_WEIGHT = AllowedSpec("int8", -128, 127, ("per_axis",), symmetric=True, ch_axis=0)

_STATIC = {"input_activation": (_ACTIVATION,), "weight": (_WEIGHT,)}
_DYNAMIC = {"input_activation": (_AT_RUN_TIME,), "weight": (_WEIGHT,)}
_WEIGHT_ONLY = {"weight": (_WEIGHT,)}


def _has_rows(match: Match) -> bool:
    return bool(match.inputs("input_activation")[0].meta["val"].dim() >= 2)


_ROWS = Constraint("rows", "the input has two or more dimensions", _has_rows)


def _reads_rows(match: Match) -> bool:
    return bool(match.anchor.args[0].meta["val"].dim() >= 2)  # type: ignore[union-attr]


_FLOAT_ROWS = Constraint("rows", "the input has two or more dimensions", _reads_rows)


def _skip_of(match: Match) -> Node:
    return match.inputs("input_activation")[-1]


def _adds_like_shapes(match: Match) -> bool:
    shapes = [list(map(str, node.meta["val"].shape)) for node in (match.anchor, _skip_of(match))]
    return shapes[0] == shapes[1] and not match.is_constant(_skip_of(match))


_LIKE_SHAPES = Constraint(
    "shapes", "what is added has the shape of the product, and is no constant", _adds_like_shapes
)


def _is_last_to_read(match: Match) -> bool:
    """Whether all other readers of the tensor that is added are computed before the convolution."""
    skip = _skip_of(match)
    # Export's check of the inputs reads them before all else.
    others = {user for user in skip.users if user not in match.nodes and user.op != "call_module"}
    return others <= _before(match.anchor, skip)


def _before(node: Node, first: Node) -> set[Node]:
    """The nodes that a node depends on, and itself, that stand behind another one in the graph."""
    found, waiting = {node}, [node]
    while waiting:
        new = [one for one in waiting.pop().all_input_nodes if one > first and one not in found]
        found.update(new)
        waiting += new
    return found


# The kernel adds in place, so the tensor that is added must not be needed any more.
_LAST_READER = Constraint(
    "last_reader", "the addition is the last to read the tensor that is added", _is_last_to_read
)


def _has_many_channels(match: Match) -> bool:
    return bool(match.inputs("weight")[0].meta["val"].shape[0] > 8)


# Inductor writes constants of eight elements into loops, and its kernel takes no scales from a loop.
_MANY_CHANNELS = Constraint("channels", "there are nine or more output channels", _has_many_channels)

#: torch writes one row times a weight of so many inputs and outputs as a loop, and calls no kernel.
_UNROLLED = 16


def _is_left_to_a_kernel(match: Match) -> bool:
    """Whether torch calls a kernel for a product: see mm and addmm in ``_inductor/decomposition.py``."""
    sizes = match.inputs("weight")[0].meta["val"].shape
    shape = match.inputs("input_activation")[0].meta["val"].shape
    if not len(shape) or 0 in sizes or shape[-1] == 1:
        return False
    *rows, inputs = shape
    outputs = math.prod(sizes) // inputs
    is_one_row = all(isinstance(size, int) and size == 1 for size in rows)
    return not is_one_row or (outputs > 1 and max(inputs, outputs) > _UNROLLED)


_TO_A_KERNEL = Constraint(
    "not_unrolled",
    "there are two or more inputs, and two rows, or two outputs and 17 inputs or outputs",
    _is_left_to_a_kernel,
)

_IMAGE = (when.CONSTANT_WEIGHT, when.IMAGE, when.EVEN_PADDING)
_SIGNAL = (when.CONSTANT_WEIGHT, when.SIGNAL, when.EVEN_PADDING)
_MATRIX = (when.CONSTANT_WEIGHT, when.MATRIX)


# In float32 the kernel is a hundred times as slow as a product of floats.
_BFLOAT16 = one_dtype("bfloat16", code="bfloat16")


def _row(
    pattern: OperatorPattern,
    specs: Mapping[str, tuple[AllowedSpec, ...]],
    *constraints: Constraint,
    channel_axis: int = 0,
    rewrite: tuple[Rewrite, ...] = (),
    dtypes: Constraint = when.FLOAT32,
) -> SupportRow:
    return SupportRow(
        pattern,
        specs,
        constraints=(dtypes, *constraints),
        targets=_TARGETS,
        channel_axis=channel_axis,
        rewrite=rewrite,
    )


#: Activations that kernels of convolutions compute with: operators, constraints, form.
_OF_CONVOLUTIONS: tuple[tuple[tuple[Operator, ...], tuple[Constraint, ...], tuple[Rewrite, ...]], ...] = (
    *(((one,), (), ()) for one in (ops.RELU, ops.RELU6, ops.HARDTANH, ops.HARDSWISH, ops.SILU)),
    ((ops.CLAMP,), (when.TWO_BOUNDS,), (write.as_hardtanh,)),
    ((), (), ()),
)


def _convolutions(operator: Operator, only: tuple[Constraint, ...]) -> Iterator[SupportRow]:
    for after, more, form in _OF_CONVOLUTIONS:
        yield _row(OperatorPattern.of(operator, *after), _STATIC, *only, *more, rewrite=form)


def _with_addition(operator: Operator, only: tuple[Constraint, ...]) -> Iterator[SupportRow]:
    """Rows of a convolution to which the kernel adds a tensor of integers, alone and with relu."""
    added = part(ops.ADD, part(operator, does_the_work=True), Value(name="skip"))
    for root in (part(ops.RELU, added), added):
        yield _row(OperatorPattern.tree(root), _STATIC, *only, _LIKE_SHAPES, _LAST_READER)


def _linears() -> Iterator[SupportRow]:
    product = (*_MATRIX, _ROWS, _TO_A_KERNEL)
    for specs in (_STATIC, _DYNAMIC):
        for after in ((ops.RELU,), (ops.GELU,), ()):
            yield _row(OperatorPattern.of(ops.LINEAR, *after), specs, *product, when.BIAS_OF_CHANNELS,
                       rewrite=(write.with_stored_bias,))  # fmt: skip
        yield _row(OperatorPattern.of(ops.ADDMM), specs, *product, when.BIAS_OF_CHANNELS, when.UNSCALED,
                   channel_axis=1, rewrite=(write.as_linear, write.with_stored_bias))  # fmt: skip
        yield _row(OperatorPattern.of(ops.MATMUL), specs, *product, channel_axis=1,
                   rewrite=(write.as_linear,))  # fmt: skip
    yield _row(OperatorPattern.of(ops.LINEAR), _WEIGHT_ONLY, *_MATRIX, _FLOAT_ROWS, _MANY_CHANNELS,
               when.ONE_UNKNOWN,
               dtypes=_BFLOAT16)  # fmt: skip


_FLOAT_LOOP = "Inductor has no kernel of integers for it: the loop that it generates computes in float"
_NO_CONVOLUTION = "Inductor's kernels of integers take convolutions of one and two dimensions"
_REFUSALS = (
    Refusal(ops.CONV3D, _NO_CONVOLUTION),
    Refusal(ops.CONV_TRANSPOSE1D, "Inductor has no kernel of integers for transposed convolutions"),
    Refusal(ops.CONV_TRANSPOSE2D, "Inductor has no kernel of integers for transposed convolutions"),
    *(
        Refusal(op, _FLOAT_LOOP)
        for op in (ops.AVG_POOL2D, ops.ADAPTIVE_AVG_POOL2D, ops.MEAN, ops.MUL, ops.SUB)
    ),
)

SUPPORT = SupportTable(
    "inductor_x86",
    (
        *_with_addition(ops.CONV2D, _IMAGE),
        *_convolutions(ops.CONV2D, _IMAGE),
        *_convolutions(ops.CONV1D, _SIGNAL),
        *_linears(),
    ),
    _REFUSALS,
)
