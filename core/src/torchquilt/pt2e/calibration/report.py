"""Report of a calibration, as a value that prints: batches, whether they still move ranges, oddities."""

from __future__ import annotations

import attrs
from torch.fx import GraphModule

from torchquilt._internal.text_tables import aligned, few, html_list, html_table
from torchquilt.errors import ModelError
from torchquilt.ledger.rows import Caution
from torchquilt.pt2e.calibration.convergence import FIRST, SETTLED, Progress, progress_of
from torchquilt.pt2e.calibration.outliers import find_outliers
from torchquilt.pt2e.model_record import stage_in_words, stage_of
from torchquilt.pt2e.observer_points import ObservedPoint, observed_points


@attrs.frozen
class ObservedTensor:
    """Statistics of the tensors of one group, which have one set of parameters.

    Args:
        edges: the edges and outputs of the graph that they are, as in ``weight → linear``.
        observer: the kind of observer.
        count: how many ordinary values were seen.
        nan: how many NaN.
        infinite: how many infinities.
        masked: how many mask values, from half the largest number of their dtype on.
        low: the low end of the range that they get, of all sets of parameters; None where nothing was seen.
        high: the high end.
    """

    edges: tuple[str, ...]
    observer: str
    count: int
    nan: int
    infinite: int
    masked: int
    low: float | None
    high: float | None

    @property
    def ignored(self) -> int:
        """Number of values that were no data."""
        return self.nan + self.infinite + self.masked


@attrs.frozen
class CalibrationReport:
    """Report of a calibration. Made by :func:`calibration_of`.

    Args:
        batches: how many :func:`torchquilt.calibrate` ran, those of other ranks and shards among them.
        settled_since: the number of batches from which on no range moved by more than two percent, as far as
            it was looked at, which is after 8, 16, 32 … batches and after the last; None where a range still
            moves, where there were too few batches, or where the order is not known, since several
            calibrations were merged.
        moves: ``(batches, move)`` of each time that it was looked at: how far the range moved that moved
            most, as a share of itself.
        is_merged: whether what other ranks or shards saw is in it.
        tensors: what was seen of each group of tensors.
        warnings: outliers that take a range for themselves; ``ledger_of(quantized).warnings`` has them, too.
    """

    batches: int
    settled_since: int | None
    moves: tuple[tuple[int, float], ...]
    is_merged: bool
    tensors: tuple[ObservedTensor, ...]
    warnings: tuple[Caution, ...]

    @property
    def never_reached(self) -> tuple[ObservedTensor, ...]:
        """The tensors of which nothing at all was seen."""
        return tuple(tensor for tensor in self.tensors if not tensor.count and not tensor.ignored)

    def __str__(self) -> str:
        lines = [f"{self.batches} batches, {len(self.tensors)} ranges", self._settling()]
        if self.never_reached:
            names = [tensor.edges[0] for tensor in self.never_reached]
            lines.append(f"never reached: {few(names, 5)}")
        odd = [_cells(tensor) for tensor in self.tensors if tensor.ignored]
        if odd:
            lines += ["values that are no data, and were left out:", aligned([_HEADER, *odd])]
        lines += [f"warning: {caution}" for caution in self.warnings]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The same for a notebook, with all tensors."""
        return "\n".join(
            [
                f"<p>{self.batches} batches; {self._settling()}</p>",
                html_table(_HEADER, [_cells(tensor) for tensor in self.tensors]),
                html_list("Warnings:", [str(caution) for caution in self.warnings]),
            ]
        )

    def _settling(self) -> str:
        if self.is_merged:
            return "merged from several calibrations, so the batch that moved it is not known"
        if not self.moves:
            return f"too few batches to say whether more would move a range: that takes more than {FIRST}"
        batches, move = self.moves[-1]
        if self.settled_since is None:
            return f"more data still moves ranges: one moved by {move:.1%} up to batch {batches}"
        return f"no range moved by more than {SETTLED:.0%} since batch {self.settled_since}"


def calibration_of(prepared: GraphModule) -> CalibrationReport:
    """Report what a prepared model has seen so far.

    Batches that were not run by :func:`torchquilt.calibrate` but by calling the model are in what its tensors
    saw, but they were not counted.

    Raises:
        ModelError: the model is not a prepared one.
    """
    if stage_of(prepared) != "prepared":
        raise ModelError(
            "Only a prepared model has observers to ask.",
            expected="what prepare_pt2e returned, before convert_pt2e",
            got=stage_in_words(prepared),
        )
    progress: Progress = progress_of(prepared)
    return CalibrationReport(
        progress.batches,
        None if progress.is_merged else progress.settled_since,
        progress.moves,
        progress.is_merged,
        tuple(_tensor(point) for point in observed_points(prepared).values()),
        find_outliers(prepared),
    )


def _tensor(point: ObservedPoint) -> ObservedTensor:
    seen, low, high = point.observer, None, None
    if seen.has_data:
        ends = point.range()
        low, high = float(ends[0].min()), float(ends[1].max())
    return ObservedTensor(
        point.names,
        type(seen).__name__,
        int(seen.count),
        int(seen.nan),
        int(seen.infinite),
        int(seen.masked),
        low,
        high,
    )


_HEADER = ("tensor", "values", "NaN", "infinite", "masked", "range")


def _cells(tensor: ObservedTensor) -> tuple[str, ...]:
    counts = (tensor.count, tensor.nan, tensor.infinite, tensor.masked)
    ends = "" if tensor.low is None else f"{tensor.low:.4g} … {tensor.high:.4g}"
    return (tensor.edges[0], *(f"{number:,}" for number in counts), ends)
