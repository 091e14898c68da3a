"""Limits of the integers in a backend's kernels, and the tensors of an operator that they concern.

A row of a support table states the limits once. Convert raises calibrated scales until they keep
the limits: see :mod:`torchquilt.pt2e.scale_limits`. Importing this module does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from torchquilt.errors import PatternError
from torchquilt.spec.qspec import EdgeOrNode

if TYPE_CHECKING:
    from torch.fx import Node


def _is_positive(_: object, attribute: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None and not value > 0:
        raise PatternError(
            "A limit of arithmetic is a positive number, or None for no limit.",
            expected=f"{attribute.name} > 0",
            got=repr(value),
        )


@attrs.frozen
class ArithmeticLimits:
    """Limits of kernels that compute with integers alone. None stands for no limit.

    Args:
        accumulator_bits: bits of the signed integers in which products are summed up. A bias is such an
            integer, in steps of input scale times weight scale; it may take up half of their range.
        product_ratio: the product of the scales of all inputs, the weight's with them, is less than so many
            output scales.
        input_ratio: the scale of each input is less than so many output scales.
    """

    accumulator_bits: int | None = attrs.field(default=None, validator=_is_positive, kw_only=True)
    product_ratio: float | None = attrs.field(default=None, validator=_is_positive, kw_only=True)
    input_ratio: float | None = attrs.field(default=None, validator=_is_positive, kw_only=True)

    @property
    def stated(self) -> tuple[tuple[str, float], ...]:
        """Name and value of each limit that there is."""
        return tuple((name, value) for name, value in attrs.asdict(self).items() if value is not None)


#: Name of a limit → the limit in words, with its value to be filled in.
IN_WORDS = {
    "accumulator_bits": "accumulator of {:g} bits",
    "product_ratio": "product of input scales < {:g} output scales",
    "input_ratio": "each input scale < {:g} output scales",
}


@attrs.frozen
class Arithmetic:
    """Limits, and the tensors of a match that they are about.

    Args:
        limits: the limits.
        inputs: the edges of the quantized activations.
        weight: the edge of the quantized weight, None where there is none.
        bias: the node of the float bias and the node that reads it, None where there is none.
    """

    limits: ArithmeticLimits
    inputs: tuple[EdgeOrNode, ...]
    weight: EdgeOrNode | None = None
    bias: tuple[Node, Node] | None = None
