"""Support table of the Acme NPU, which answers the query and drives the annotation."""

from __future__ import annotations

from torchquilt import AllowedSpec, Constraint, Match, OperatorPattern, SupportRow, SupportTable
from torchquilt.backend import CONSTANT_WEIGHT, FLOAT32, Operator, Value, input_rank, part
from torchquilt.backend import operators as ops
from torchquilt_acme_npu.specs import GROUP

_INT8 = AllowedSpec("int8", -128, 127, ("per_tensor",), symmetric=False)
_INT16 = AllowedSpec("int16", -(2**15), 2**15 - 1, ("per_tensor",), symmetric=True)
_ACTIVATIONS = {"input_activation": (_INT8, _INT16), "output_activation": (_INT8, _INT16)}
_WEIGHT_8 = AllowedSpec("int8", -127, 127, ("per_axis",), symmetric=True, ch_axis=0)
_WEIGHT_4 = AllowedSpec("int8", -8, 7, ("per_group",), symmetric=True, group_sizes=(GROUP,))


def _divides_into_groups(match: Match) -> bool:
    (weight,) = match.inputs("weight")
    shape = weight.meta["val"].shape
    return len(shape) == 2 and bool(shape[1] % GROUP == 0)


GROUPS = Constraint(
    "groups",
    f"the weight is a matrix, and its input features are a multiple of {GROUP}",
    _divides_into_groups,
)


def _row(
    *operators: ops.Operator, weight: AllowedSpec, name: str = "", also: tuple[Constraint, ...] = ()
) -> SupportRow:
    return SupportRow(
        OperatorPattern.of(*operators, name=name),
        {**_ACTIVATIONS, "weight": (weight,)},
        constraints=(FLOAT32, CONSTANT_WEIGHT, *also),
        targets=("acme_npu",),
    )


_SIGMOID = Operator("sigmoid", ("aten.sigmoid.default",), (), ("torch.sigmoid",))
_X = Value()
_SILU = OperatorPattern.tree(part(ops.MUL, _X, part(_SIGMOID, _X), does_the_work=True), name="silu")

SUPPORT = SupportTable(
    "acme_npu",
    (
        _row(ops.LINEAR, ops.RELU, weight=_WEIGHT_8),
        _row(ops.LINEAR, weight=_WEIGHT_8),
        _row(ops.LINEAR, weight=_WEIGHT_4, name="linear_int4", also=(GROUPS,)),
        _row(ops.CONV2D, ops.RELU, weight=_WEIGHT_8, also=(input_rank(4),)),
        _row(ops.CONV2D, weight=_WEIGHT_8, also=(input_rank(4),)),
        SupportRow(_SILU, _ACTIVATIONS, constraints=(FLOAT32,), targets=("acme_npu",)),
    ),
)
