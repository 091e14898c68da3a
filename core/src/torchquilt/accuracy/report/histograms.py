"""Histograms of what calibration saw, beside the range that was chosen, from a prepared model."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from torch.fx import GraphModule

from torchquilt.accuracy.report.ranges import Range
from torchquilt.errors import ModelError
from torchquilt.ledger.ledger import Ledger
from torchquilt.ledger.rows import Row
from torchquilt.observers.bins import SIDE, edges
from torchquilt.observers.histogram import HistogramObserver
from torchquilt.pt2e.model_record import ledger_of, stage_in_words, stage_of
from torchquilt.pt2e.observer_points import ObservedPoint, observed_points

#: Bars of a histogram.
_BARS = 64


@attrs.frozen
class Histogram:
    """Counts of the values of a group of tensors.

    Args:
        start, end: where the first bar begins and the last one ends.
        counts: of the bars, which are equally wide, in values.
        low, high: the smallest and the largest value of all.
        below, above: the values that are left and right of all bars.
        clipped_below, clipped_above: the share of the values that the range cuts off at either end.
    """

    start: float
    end: float
    counts: tuple[float, ...]
    low: float
    high: float
    below: float
    above: float
    clipped_below: float
    clipped_above: float


def histograms_of(prepared: object, ledger: Ledger, ranges: Mapping[int, Range]) -> dict[int, Histogram]:
    """Number of a group of tensors → what its observer counted, for observers that count.

    Args:
        prepared: what was calibrated.
        ledger: of the model that was made of it.
        ranges: of the groups in that.

    Raises:
        ModelError: it is no prepared model, or one of which something else was decided.
    """
    if not isinstance(prepared, GraphModule) or stage_of(prepared) != "prepared":
        raise ModelError(
            "Only a prepared model has observers to ask for histograms.",
            expected="prepared=what prepare_pt2e and calibrate returned",
            got=stage_in_words(prepared),
            remedy="leave it out, or hand in the model that was calibrated",
        )
    decided = {row.node: row.tensors for row in ledger_of(prepared)}
    alike = [row for row in ledger.rows if decided.get(row.node) == row.tensors]
    if ledger.quantized and not any(row.tensors for row in alike):
        raise ModelError(
            "The prepared model is not the one that this model was made of: no decision is the same.",
            expected="the prepared model of which convert_pt2e made the quantized one",
            got=f"{len(decided):,} operators, of which none has the same quantized tensors",
            remedy="leave it out, or hand in the model that was calibrated",
        )
    points = {name: point for point in observed_points(prepared).values() for name in point.names}
    found: dict[int, Histogram] = {}
    for row in alike:
        for number, point in _points_at(row, points):
            observer = point.observer
            if number not in found and isinstance(observer, HistogramObserver) and observer.has_data:
                found[number] = _histogram(observer, ranges.get(number))
    return found


def _points_at(row: Row, points: Mapping[str, ObservedPoint]) -> list[tuple[int, ObservedPoint]]:
    """The groups of a row's tensors with their observer points."""
    parts = [name.rpartition(".") for name, _ in row.forms]
    found = []
    for tensor in row.tensors:
        if tensor.edge == "output":
            names = ["".join(parts[-1])]
        else:
            source = tensor.edge.removeprefix("input ")
            names = [f"{region}{dot}{source} → {part}" for region, dot, part in parts]
        found += [(tensor.group, points[name]) for name in names if name in points]
    return found


def _histogram(observer: HistogramObserver, chosen: Range | None) -> Histogram:
    low, high = float(observer.low), float(observer.high)
    counts = _Counts(observer.counts.cpu(), low, high)
    first, last = _window(low, high, chosen)
    bounds = torch.linspace(first, last, _BARS + 1, dtype=torch.float64)
    below = counts.below(bounds)
    clipped = (0.0, 0.0)
    if chosen is not None and chosen.low is not None and chosen.high is not None and counts.total:
        half = (chosen.step or 0.0) / 2  # what rounds to the last integer is not cut off
        ends = counts.below(torch.tensor([chosen.low - half, chosen.high + half], dtype=torch.float64))
        clipped = float(ends[0]) / counts.total, 1 - float(ends[1]) / counts.total
    return Histogram(
        first,
        last,
        tuple(round(count, 2) for count in below.diff().tolist()),
        low,
        high,
        float(below[0]),
        counts.total - float(below[-1]),
        *clipped,
    )


def _window(low: float, high: float, chosen: Range | None) -> tuple[float, float]:
    """Ends of the bars: the chosen range, and half of it at either side as far as there are values."""
    if chosen is None or chosen.low is None or chosen.high is None:
        first, last = low, high
    else:
        margin = (chosen.high - chosen.low) / 2
        first = min(chosen.low, max(low, chosen.low - margin))
        last = max(chosen.high, min(high, chosen.high + margin))
    return (first, last) if first < last else (first - 0.5, last + 0.5)


class _Counts:
    """Counts over the whole line, to ask how many values lie below a value."""

    def __init__(self, counts: torch.Tensor, low: float, high: float) -> None:
        kept = len(counts) - SIDE
        upper = edges()[: kept + 1]
        bounds = torch.cat([-upper.flip(0), upper[1:]])
        # A bin reaches beyond the smallest and the largest value, the values in it do not.
        self._bounds = bounds.clamp(low, high)
        reached = torch.cat([counts[SIDE:].flip(0), counts[:kept]]).cumsum(0).double()
        self._reached = torch.cat([reached.new_zeros(1), reached])
        self.total = float(reached[-1])

    def below(self, values: torch.Tensor) -> torch.Tensor:
        """Number of values below each of these, as if those of a bin lay evenly in it."""
        bounds = self._bounds
        right = torch.searchsorted(bounds, values, right=True).clamp(1, len(bounds) - 1)
        left = right - 1
        start, width = bounds[left], bounds[right] - bounds[left]
        part = torch.where(width > 0, (values - start) / width.clamp(min=1e-300), (values > start).double())
        part = part.clamp(0, 1)
        return self._reached[left] + part * (self._reached[right] - self._reached[left])
