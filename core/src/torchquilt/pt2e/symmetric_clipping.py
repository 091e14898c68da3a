"""Values that a symmetric range cuts off, since it reaches much further on one side of zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torchquilt.ledger.rows import Caution
from torchquilt.observers import QParams
from torchquilt.observers.qparams import as_rows
from torchquilt.pt2e.observer_points import ConstantPoint, ObservedPoint
from torchquilt.spec.qspec import QuantizationSpec


def is_lopsided(spec: QuantizationSpec) -> bool:
    """Whether a symmetric range has less than half as many integers on one side of zero as on the other."""
    if not spec.symmetric or spec.zero_point is None:
        return False
    sides = (spec.zero_point - spec.quant_min, spec.quant_max - spec.zero_point)
    return min(sides) < max(sides) / 2


def cut_off(
    point: ConstantPoint | ObservedPoint, qparams: QParams, values: Sequence[torch.Tensor]
) -> Caution | None:
    """A warning, where there are values on the short side of a range that it does not reach.

    Args:
        point: a point with a spec for which :func:`is_lopsided` holds.
        qparams: its parameters.
        values: the constants at it; for an activation its observed range counts.
    """
    spec = point.spec
    assert spec.zero_point is not None
    if isinstance(point, ObservedPoint):
        rows = torch.stack([end.reshape(-1) for end in point.range()], dim=-1)
        what = "a side of its range"
    else:
        rows = torch.cat([as_rows(value, spec)[0] for value in values], dim=-1)
        what = "{:.0%} of its values"
    scale = qparams.scale.reshape(-1, 1).to(rows.device)
    low, high = ((end - spec.zero_point) * scale for end in (spec.quant_min, spec.quant_max))
    # What is a step beside the end of the range is rounded to it, and not cut off.
    outside = (rows < low - scale) | (rows > high + scale)
    if not bool(outside.any()):
        return None
    below, above = spec.zero_point - spec.quant_min, spec.quant_max - spec.zero_point
    text = (
        f"{what.format(float(outside.float().mean()))} cannot be represented: the symmetric range "
        f"{spec.quant_min} … {spec.quant_max} has {below} integers below zero and {above} above. Choose "
        "quant_min and quant_max about as far from zero, or symmetric=False"
    )
    return Caution(", ".join(point.names), "cut_off", text)
