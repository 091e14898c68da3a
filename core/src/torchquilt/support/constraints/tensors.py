"""Constraints on the tensors of a match: dtypes, dimensions, sizes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from torchquilt.graph.node_values import rank, tensor_of
from torchquilt.support.pattern import Match
from torchquilt.support.table import Constraint

if TYPE_CHECKING:
    import torch


def _dtypes(match: Match) -> set[str]:
    """The dtypes of the operands and the output, by name."""
    tensors = (tensor_of(node) for node in (*(node for node, _, _ in match.operands), match.output))
    return {_name(tensor.dtype) for tensor in tensors if tensor is not None}


@functools.cache
def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def one_dtype(*dtypes: str, code: str = "dtype") -> Constraint:
    """Require one dtype, one of these, for all tensors of the operator.

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


FLOAT32 = one_dtype("float32", code="float32")


# Weights in float16 have dynamic kernels. No integer kernel returns bfloat16.
FLOAT32_OR_16 = one_dtype("float32", "float16")


def input_rank(*ranks: int) -> Constraint:
    """Require one of these numbers of dimensions for the first activation.

    Args:
        *ranks: the numbers.
    """
    text = f"the input has {' or '.join(map(str, ranks))} dimensions"

    def found(match: Match) -> int | None:
        return rank(match.inputs("input_activation")[0])

    return Constraint(
        "rank", text, lambda match: found(match) in ranks, lambda match: f"it has {found(match)}"
    )


IMAGE = input_rank(4)


SIGNAL = input_rank(3)


def _has_dimensions(match: Match) -> bool:
    """Whether each tensor but the constants has a dimension; constants without one get some later."""
    tensors = (*(node for node, _, _ in match.operands if not match.is_constant(node)), match.output)
    return all(node.meta["val"].dim() > 0 for node in tensors)


DIMENSIONS = Constraint(
    "dimensions", "each tensor that is computed has at least one dimension", _has_dimensions
)


def _have_one_rank(match: Match) -> bool:
    ranks = {tensor.meta["val"].dim() for tensor in match.inputs("input_activation")}
    return len(ranks) == 1 and 0 not in ranks


ONE_RANK = Constraint(
    "one_rank", "all tensors have the same number of dimensions, at least one", _have_one_rank
)


def _has_two_inputs(match: Match) -> bool:
    return len(match.anchor.all_input_nodes) >= 2


TWO_OR_MORE = Constraint("two_inputs", "two or more different tensors are joined", _has_two_inputs)


def is_static(match: Match) -> bool:
    """Whether all sizes of the result are static."""
    return all(isinstance(size, int) for size in match.output.meta["val"].shape)


def _shape_found(match: Match) -> str:
    return f"it is {list(match.output.meta['val'].shape)}"


STATIC_SHAPE = Constraint("static_shape", "the shape of the result is static", is_static, _shape_found)


def _has_one_unknown(match: Match) -> bool:
    return sum(not isinstance(size, int) for size in match.output.meta["val"].shape) <= 1


ONE_UNKNOWN = Constraint(
    "one_unknown",
    "at most one dimension of the result is dynamic",
    _has_one_unknown,
    lambda match: f"its shape is {list(match.output.meta['val'].shape)}",
)


def _repeats_nothing(match: Match) -> bool:
    read, returned = (
        [size for size in node.meta["val"].shape if not isinstance(size, int) or size != 1]
        for node in (match.inputs("input_activation")[0], match.output)
    )
    # Compare dynamic sizes as text: comparing them as numbers would fix them.
    return [str(size) for size in read] == [str(size) for size in returned]


REPEATS_NOTHING = Constraint(
    "repeats", "no element is repeated (the delegate has no kernel for that)", _repeats_nothing
)


def _samples(match: Match) -> Any:
    return match.inputs("input_activation")[0].meta["val"].shape[0]


def _has_one_sample(match: Match) -> bool:
    return bool(_samples(match) == 1)


# The delegate finds parameters for each sample; a dynamic quantize operator finds them for the whole tensor.
ONE_SAMPLE = Constraint(
    "one_sample", "the batch has one sample", _has_one_sample, lambda match: f"it has {_samples(match)}"
)
