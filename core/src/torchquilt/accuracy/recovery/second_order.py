"""Rounding by second-order error: GPTQ, and AdaRound on the same quadratic form.

Both take weights, their scales and zero points element by element, so they know nothing of granularities.
"""

from __future__ import annotations

import math

import attrs
import torch

from torchquilt.accuracy.recovery.matrix_layouts import output_errors

#: Columns that are rounded before what they are off is carried over to all columns behind them.
_BLOCK = 128
# Rectified sigmoid of AdaRound: stretched so that it reaches 0 and 1.
_STRETCH_LOW, _STRETCH_HIGH = -0.1, 1.1
_FREE_SHARE = 0.2
_LEARNING_RATE = 3e-2
# How much a row's weights that are neither up nor down cost, in parts of its error. With a third of it too
# many are undecided at the end.
_PULL = 3.0
_EXPONENTS = (20.0, 2.0)


@attrs.frozen(eq=False)
class Levels:
    """Values that each weight may have, ``(integer - zero_point) * scale``.

    Args:
        scale, zero_point: float64, in the shape of the weights.
        low, high: the smallest and the largest integer.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor
    low: int
    high: int

    def nearest(self, values: torch.Tensor) -> torch.Tensor:
        """The nearest integers, as floats."""
        return torch.round(values / self.scale).add_(self.zero_point).clamp_(self.low, self.high)

    def values(self, integers: torch.Tensor) -> torch.Tensor:
        """The floats that integers stand for, float64."""
        return (integers.double() - self.zero_point) * self.scale

    def columns(self, chosen: torch.Tensor) -> Levels:
        """Those of some columns of each group.

        Args:
            chosen: int64 ``[groups, columns]``.
        """
        scale, zero_point = (columns_of(each, chosen) for each in (self.scale, self.zero_point))
        return attrs.evolve(self, scale=scale, zero_point=zero_point)

    def column(self, number: int) -> Levels:
        """Those of one column."""
        scale, zero_point = self.scale[..., number], self.zero_point[..., number]
        return attrs.evolve(self, scale=scale, zero_point=zero_point)


def columns_of(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Columns ``[groups, rows, columns]`` of a tensor, chosen for each group by itself."""
    return values.gather(2, chosen[:, None, :].expand(-1, values.shape[1], -1))


def gptq(weight: torch.Tensor, levels: Levels, moments: torch.Tensor, damping: float) -> torch.Tensor:
    """Round column after column, each time moving the weights that are left against the error made.

    This is GPTQ (Frantar et al. 2022, arXiv:2210.17323) with the columns of largest moments first (its "act
    order"). Scales are given, so that a group's do not depend on what was rounded before.

    Args:
        weight: float64 ``[groups, rows, columns]``.
        levels: those of each weight, of the same shape.
        moments: of the inputs, float64 ``[groups, columns, columns]``.
        damping: this share of the mean of the diagonal is added to it.

    Returns:
        Integers, as float64 of the shape of the weight.
    """
    order = moments.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    factor = _factor_of_inverse(_reordered(moments, order), damping)
    levels, left = levels.columns(order), columns_of(weight, order)
    rounded = torch.empty_like(left)
    for start in range(0, left.shape[2], _BLOCK):
        stop = min(start + _BLOCK, left.shape[2])
        errors = torch.empty_like(left[..., start:stop])
        for column in range(start, stop):
            here = levels.column(column)
            integers = here.nearest(left[..., column])
            rounded[..., column] = integers
            error = (left[..., column] - here.values(integers)) / factor[:, None, column, column]
            errors[..., column - start] = error
            left[..., column:stop] -= error[..., None] * factor[:, None, column, column:stop]
        left[..., stop:] -= errors @ factor[:, start:stop, stop:]
    return columns_of(rounded, order.argsort(dim=1))


def _reordered(moments: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return columns_of(columns_of(moments, order).mT, order).mT


def _factor_of_inverse(moments: torch.Tensor, damping: float) -> torch.Tensor:
    """Upper Cholesky factor of the inverse of the damped moments."""
    diagonal = moments.diagonal(dim1=1, dim2=2)
    # A column that is always zero has no error, whatever it is rounded to.
    is_idle = diagonal <= 0
    mean = diagonal.mean(1, keepdim=True)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    unit = torch.where(is_idle, mean, torch.zeros_like(mean))
    while True:
        damped = moments + torch.diag_embed(unit + damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not bool(failed.any()):
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not bool(failed.any()):
            return torch.as_tensor(factor)
        damping = 10 * max(damping, 1e-6)  # moments summed in float32 can be that far from positive


def adaround(weight: torch.Tensor, levels: Levels, moments: torch.Tensor, steps: int) -> torch.Tensor:
    """Learn for each weight whether it is rounded up or down.

    This is AdaRound (Nagel et al. 2020, arXiv:2004.10568) with the error of a layer's output as the quadratic
    form that it is, so that no input is needed. There is nothing random in it.

    Args:
        weight: float64 ``[groups, rows, columns]``.
        levels: those of each weight, of the same shape.
        moments: of the inputs, float64 ``[groups, columns, columns]``.
        steps: of the optimisation.

    Returns:
        Integers, as float64 of the shape of the weight.
    """
    position = weight / levels.scale + levels.zero_point
    floor = position.floor().clamp_(levels.low, levels.high - 1)
    off = levels.values(levels.nearest(weight)) - weight
    # Each row's error in parts of that of the nearest integers, so that one rate fits all.
    unit = output_errors(off, moments)
    unit = torch.where(unit > 0, unit, torch.ones_like(unit)).float()
    part = (position - floor).clamp(0.01, 0.99).float()
    stretched = (part - _STRETCH_LOW) / (_STRETCH_HIGH - _STRETCH_LOW)
    moments, scale = moments.float(), levels.scale.float()
    base = (levels.values(floor) - weight).float()
    with torch.enable_grad():
        variable = torch.logit(stretched).requires_grad_()
        optimizer = torch.optim.Adam([variable], lr=_LEARNING_RATE)
        for step in range(steps):
            share = _up(variable)
            errors = ((base + share * scale) @ moments * (base + share * scale)).sum(-1) / unit
            loss = errors.sum()
            exponent = _exponent(step / steps)
            if exponent is not None:
                undecided = (1 - (2 * share - 1).abs() ** exponent).sum() / weight.shape[2]
                loss = loss + _PULL * undecided
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    up = (_up(variable.detach()) >= 0.5).double()
    return (floor + up).clamp(levels.low, levels.high)


def _up(variable: torch.Tensor) -> torch.Tensor:
    stretched = torch.sigmoid(variable) * (_STRETCH_HIGH - _STRETCH_LOW) + _STRETCH_LOW
    return stretched.clamp(0, 1)


def _exponent(progress: float) -> float | None:
    """Exponent of the term that asks for 0 or 1; None in the beginning, when there is no such term."""
    if progress < _FREE_SHARE:
        return None
    begin, end = _EXPONENTS
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - _FREE_SHARE) / (1 - _FREE_SHARE)))
    return end + (begin - end) * cosine
