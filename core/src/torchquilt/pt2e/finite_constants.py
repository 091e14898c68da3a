"""Constants that integers can stand for: those whose elements are finite numbers."""

from __future__ import annotations

import torch

from torchquilt.errors import CalibrationError


def check_is_finite(value: torch.Tensor, name: str) -> None:
    """Refuse a constant with elements that are NaN or infinite.

    Args:
        value: a constant that a quantized operator reads.
        name: the name that it is stored under.

    Raises:
        CalibrationError: there are some; says how many.
    """
    # The sum needs no memory. It may be infinite for finite numbers; then they are looked at one by one.
    if not value.is_floating_point() or bool(value.sum().isfinite()) or bool(value.isfinite().all()):
        return
    nan, infinite = int(value.isnan().sum()), int(value.isinf().sum())
    raise CalibrationError(
        f"{name} has elements that are NaN or infinite, which integers cannot stand for.",
        node=name,
        expected="finite numbers in the weights, biases and constants of quantized operators",
        got=f"{nan} NaN and {infinite} infinite of {value.numel()} elements",
        remedy="repair the model, or leave the operators that read it in float",
    )
