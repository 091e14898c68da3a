"""Outliers that take the range of a tensor for themselves: a warning in the ledger for each.

What they leave to nearly all values is a thousandth of the grid, which is less than one step of eight bits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import attrs
from torch.fx import GraphModule

from torchquilt.ledger import Caution, Ledger
from torchquilt.pt2e.points import ObservedPoint, observed_points
from torchquilt.pt2e.stage import RECORD_KEY


def find_outliers(model: GraphModule) -> tuple[Caution, ...]:
    """A warning for each observed tensor of a prepared model whose range is for outliers.

    Only observers that count their values know: those that read a histogram, and not min-max.
    """
    points = observed_points(model).values()
    return tuple(
        _caution(point) for point in points if point.observer.has_data and point.observer.has_outliers()
    )


def note_cautions(model: GraphModule, found: Iterable[Caution]) -> None:
    """Write warnings into the ledger of a model; replaces its record."""
    found = tuple(found)
    if found:
        record = model.meta[RECORD_KEY]
        ledger = attrs.evolve(Ledger.from_json(json.dumps(record["ledger"])), warnings=found)
        model.meta[RECORD_KEY] = {**record, "ledger": ledger.to_plain()}


def _caution(point: ObservedPoint) -> Caution:
    ratio = point.observer.outlier_ratio()
    low, high = (float(end) for end in point.observer.range())
    text = (
        f"its range, {low:.4g} … {high:.4g}, reaches {ratio:,.0f} times as far as 99.9 % of its values "
        "(more than 1,000 times is warned of): leave it in float, or clip it with "
        "activation_observer='percentile'"
    )
    return Caution(", ".join(point.places), "outlier", text)
