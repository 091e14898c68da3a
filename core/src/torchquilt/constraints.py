"""Ready conditions for support tables: what an operator and its specs alone do not say.

Each is a :class:`torchquilt.capability.Constraint` or makes one. They read the shapes, dtypes and
constants that export recorded, and never write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchquilt.graph.values import rank, tensor_of
from torchquilt.pattern import Match
from torchquilt.support import Constraint

if TYPE_CHECKING:
    import torch


def _weights_are_constant(match: Match) -> bool:
    return all(match.is_constant(node) for node in (*match.inputs("weight"), *match.inputs("bias")))


CONSTANT_WEIGHT = Constraint(
    "constant_weight", "weight and bias are constants of the model", _weights_are_constant
)


def _is_float32(match: Match) -> bool:
    tensors = [tensor_of(node) for node in (*(node for node, _, _ in match.operands), match.output)]
    return all(tensor is None or _is_of_float32(tensor.dtype) for tensor in tensors)


def _is_of_float32(dtype: torch.dtype) -> bool:
    """Without torch, and faster than by its name."""
    return dtype.is_floating_point and dtype.itemsize == 4


def _other_dtypes(match: Match) -> str:
    tensors = [tensor_of(node) for node in (*(node for node, _, _ in match.operands), match.output)]
    others = {str(tensor.dtype) for tensor in tensors if tensor is not None}
    return f"there is {', '.join(sorted(others - {'torch.float32'}))}"


FLOAT32 = Constraint("float32", "all tensors are float32", _is_float32, _other_dtypes)


def argument(match: Match, position: int, keyword: str, default: Any = None) -> Any:
    """An argument of the working operator, wherever it was passed."""
    node = match.anchor
    if position < len(node.args):
        return node.args[position]
    return node.kwargs.get(keyword, default)


def keyword_is(keyword: str, value: object, code: str, text: str) -> Constraint:
    """A keyword-only argument of the working operator has this value (or is left at it)."""
    return Constraint(
        code,
        text,
        lambda match: match.anchor.kwargs.get(keyword, value) == value,
        lambda match: f"it is {match.anchor.kwargs.get(keyword)}",
    )


def input_rank(*ranks: int) -> Constraint:
    """The first activation has one of these numbers of dimensions."""
    text = f"the input has {' or '.join(map(str, ranks))} dimensions"

    def found(match: Match) -> int | None:
        return rank(match.inputs("input_activation")[0])

    return Constraint(
        "rank", text, lambda match: found(match) in ranks, lambda match: f"it has {found(match)}"
    )
