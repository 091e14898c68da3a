"""Ranges that leave next to nothing of an integer's steps to the data: a warning in the ledger for each.

Outliers leave a thousandth of the range to nearly all values, which is less than one step of eight bits. So
do values computed from a mask, and so do two kinds of values that lie that far apart.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import attrs
from torch.fx import GraphModule

from torchquilt.ledger.ledger import Ledger
from torchquilt.ledger.rows import Caution
from torchquilt.observers.bins import NO_DATA_FROM
from torchquilt.pt2e.model_record import RECORD_KEY
from torchquilt.pt2e.observer_points import ObservedPoint, observed_points


def find_outliers(model: GraphModule) -> tuple[Caution, ...]:
    """A warning for each observed tensor of a prepared model whose range is not for most of its values.

    Only observers that count their values know: those that read a histogram. Min-max knows of a range that
    cannot be one of data.
    """
    cautions = (_caution(point) for point in observed_points(model).values() if point.observer.has_data)
    return tuple(caution for caution in cautions if caution is not None)


def warn_of(found: tuple[Caution, ...]) -> None:
    """Warn the caller of the flow of the first of some ranges, and say how many there are."""
    if found:
        more = f" (and {len(found) - 1} more, see ledger_of(model).warnings)" if len(found) > 1 else ""
        warnings.warn(f"{found[0]}{more}", stacklevel=3)


def note_cautions(model: GraphModule, found: Iterable[Caution]) -> None:
    """Write warnings into the ledger of a model; replaces its record."""
    found = tuple(found)
    if found:
        record = model.meta[RECORD_KEY]
        ledger = attrs.evolve(Ledger.from_plain(record["ledger"]), warnings=found)
        model.meta[RECORD_KEY] = {**record, "ledger": ledger.to_plain()}


def _caution(point: ObservedPoint) -> Caution | None:
    observer, names = point.observer, ", ".join(point.names)
    if observer.largest() >= NO_DATA_FROM and _reach(point) >= NO_DATA_FROM:
        text = (
            f"its range, {_range(point)}, cannot be one of data: from {NO_DATA_FROM:.2g} on a number has no "
            "square in float32. It may come from an attention mask: leave the tensor in float, or observe it "
            "with 'histogram', which tells masks from other values"
        )
        return Caution(names, "mask_values", text)
    if point.chosen is not None:  # otherwise than by what its observer makes of its values
        return None
    if observer.has_outliers():
        text = (
            f"its range, {_range(point)}, reaches {observer.outlier_ratio():,.0f} times as far as 99.9 % of "
            "its values (more than 1,000 times is warned of): leave it in float, or clip it with "
            "activation_observer='percentile'"
        )
        return Caution(names, "outlier", text)
    apart = observer.apart()
    if apart is None:
        return None
    share, others = apart
    text = (
        f"its range, {_range(point)}, is for {share:.1%} of its values, and the others, up to {others:.4g}, "
        "are less than one step of it. The large ones may come from an attention mask: leave the tensor in "
        "float"
    )
    return Caution(names, "far_apart", text)


def _reach(point: ObservedPoint) -> float:
    low, high = point.range()
    return max(-float(low.min()), float(high.max()))


def _range(point: ObservedPoint) -> str:
    low, high = point.range()
    return f"{float(low.min()):.4g} … {float(high.max()):.4g}"
