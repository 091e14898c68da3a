"""Ready conditions for support tables: what an operator and its specs alone do not say.

Each is a :class:`torchquilt.support.capabilities.Constraint` or makes one. They read the shapes, dtypes and
constants that export recorded, and never write.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from torchquilt.graph.node_values import rank, tensor_of
from torchquilt.support.pattern import Match
from torchquilt.support.table import Constraint

if TYPE_CHECKING:
    import torch


def _weights_are_constant(match: Match) -> bool:
    return all(match.is_constant(node) for node in (*match.inputs("weight"), *match.inputs("bias")))


CONSTANT_WEIGHT = Constraint(
    "constant_weight", "weight and bias are constants of the model", _weights_are_constant
)


def one_dtype(*dtypes: str, code: str = "dtype") -> Constraint:
    """All tensors of the operator have one dtype, which is one of these.

    Args:
        dtypes: by name (``"float16"``).
        code: the code of the constraint.
    """
    text = ", or all are ".join((f"all tensors are {dtypes[0]}", *dtypes[1:]))

    def holds(match: Match) -> bool:
        found = _dtypes(match)
        return len(found) <= 1 and found.issubset(dtypes)

    def found(match: Match) -> str:
        return f"there is {', '.join(f'torch.{name}' for name in sorted(_dtypes(match) - {dtypes[0]}))}"

    return Constraint(code, text, holds, found)


def _dtypes(match: Match) -> set[str]:
    """The dtypes of the operands and the output, by name."""
    tensors = (tensor_of(node) for node in (*(node for node, _, _ in match.operands), match.output))
    return {_name(tensor.dtype) for tensor in tensors if tensor is not None}


@functools.cache
def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


FLOAT32 = one_dtype("float32", code="float32")


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
