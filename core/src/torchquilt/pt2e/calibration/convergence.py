"""Convergence: the batches that a prepared model has seen, and whether they still move its ranges.

After 8, 16, 32 … batches, and after the last one, each range is compared with what it was the time before.
What is compared is cheap to find and follows the range: smallest and largest value of a min-max observer, the
99.9th percentile of magnitudes of a histogram (:meth:`torchquilt.observers.Observer.extent`).
"""

from __future__ import annotations

import attrs
from torch.fx import GraphModule

from torchquilt.pt2e.observer_points import observed_points

_KEY = "torchquilt_calibration"
#: Ranges are compared from this many batches on, and each time that they have doubled.
FIRST = 8
#: A range has settled when it moves by no more than this share of itself.
SETTLED = 0.02


@attrs.frozen
class Progress:
    """Progress of a calibration.

    Args:
        batches: how many the model has seen.
        extents: name of each point → what was compared the last time.
        moves: ``(batches, move)`` of each time but the first: how far, as a share of itself, the range moved
            that moved most since the time before.
        is_merged: whether what others saw is in it. Then the order of their batches is not known.
        compared: the number of batches at which ranges were compared the last time.
    """

    batches: int = 0
    extents: dict[str, tuple[float, float]] = attrs.field(factory=dict, repr=False)
    moves: tuple[tuple[int, float], ...] = ()
    is_merged: bool = False
    compared: int = 0

    def after_batch(self, prepared: GraphModule) -> Progress:
        """One batch more."""
        more = attrs.evolve(self, batches=self.batches + 1)
        is_due = more.batches >= FIRST and more.batches & (more.batches - 1) == 0
        return more.compare(prepared) if is_due else more

    def compare(self, prepared: GraphModule) -> Progress:
        """Compare the ranges as they are now with those of the last time."""
        if self.batches < FIRST or self.compared == self.batches:
            return self
        points = observed_points(prepared).items()
        now = {name: point.observer.extent() for name, point in points if point.observer.has_data}
        moves = self.moves
        if self.extents:
            most = max((_move(self.extents.get(name), ends) for name, ends in now.items()), default=0.0)
            moves = (*moves, (self.batches, most))
        return attrs.evolve(self, extents=now, moves=moves, compared=self.batches)

    @property
    def settled_since(self) -> int | None:
        """The number of batches from which on no range moved by more than :data:`SETTLED`, or None."""
        before = [FIRST, *(batches for batches, _ in self.moves)]
        since = None
        for start, (_, move) in zip(before, self.moves, strict=False):
            since = None if move > SETTLED else (since or start)
        return since


def _move(before: tuple[float, float] | None, now: tuple[float, float]) -> float:
    if before is None:
        return float("inf")
    width = now[1] - now[0]
    moved = max(abs(now[0] - before[0]), abs(now[1] - before[1]))
    return moved / width if width else float(moved > 0)


def progress_of(prepared: GraphModule) -> Progress:
    """Progress of the calibration of a prepared model."""
    found: Progress = prepared.meta.get(_KEY, Progress())
    return found


def set_progress(prepared: GraphModule, progress: Progress) -> None:
    """Note how far it is."""
    prepared.meta[_KEY] = progress
