"""Calibration on several ranks of a process group, each with data of its own.

Between the beginning and the end no rank waits for another, so shards may be of any size. At the end every
rank gets the states of all of them. A rank that fails says so there, and all of them raise: none is left
waiting.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch.distributed as dist
from torch.fx import GraphModule

from torchquilt.errors import CalibrationError
from torchquilt.pt2e.calibration.checkpoint import check_identity, digest, identity_of, leaf_text
from torchquilt.pt2e.calibration.convergence import Progress, progress_of, set_progress
from torchquilt.pt2e.calibration.merging import check_order_does_not_matter, merged_observers
from torchquilt.pt2e.observer_points import observed_points


@attrs.define
class _Shard:
    """Statistics of one rank: number of batches, and name of each observer point → state of its observer."""

    batches: int = 0
    states: dict[str, dict[str, Any]] = attrs.field(factory=dict)


@attrs.frozen
class _Report:
    """Message of a rank to the others. ``error`` is what it failed with, in words."""

    content: Any
    error: str | None = None


class Ranks:
    """The ranks of a process group.

    Args:
        group: the group.

    Raises:
        CalibrationError: it is none, or this process is not in it.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        if not isinstance(group, dist.ProcessGroup):
            raise CalibrationError(
                "This is no process group that this process is in.",
                expected="torch.distributed.group.WORLD after init_process_group(), or a new_group()",
                got=repr(group),
            )
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def path(self, path: str | os.PathLike[str] | None) -> str | None:
        """The file of this rank where all were given one name."""
        return None if path is None else f"{os.fspath(path)}.rank-{self.rank}-of-{self.size}"

    def exchange(self, report: _Report) -> list[Any]:
        """The contents of what all ranks report, by rank.

        Raises:
            CalibrationError: one of them failed, or cannot be reached any more.
        """
        reports: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(reports, report, group=self._group)
        except RuntimeError as error:
            raise CalibrationError(
                "A rank cannot be reached any more: it ended, or took longer than the group waits.",
                expected=f"that all {self.size} ranks come to the end of calibrate",
                got=str(error).partition("\n")[0],
                remedy="see what the other ranks say; a longer wait is asked for with "
                "init_process_group(timeout=...)",
            ) from error
        for rank, other in enumerate(reports):
            if other.error is not None and rank != self.rank:
                raise CalibrationError(
                    f"Rank {rank} failed to calibrate, so no rank has all of the data.",
                    expected=f"that all {self.size} ranks come to the end of calibrate",
                    got=other.error,
                    remedy="see there; what this rank has seen is kept in its model",
                )
        return [other.content for other in reports]


def calibrate_on_all_ranks(
    prepared: GraphModule, ranks: Ranks, steps: Callable[[], Iterator[int]]
) -> Iterator[int]:
    """Run the steps of this rank, then let its model have seen what all ranks saw.

    What the model has seen before has to be the same on all ranks, and counts once.

    Args:
        prepared: the prepared model.
        ranks: all of them call this.
        steps: shows this rank's data to the model.
    """
    points = observed_points(prepared)
    check_order_does_not_matter(points)
    _check_agreement(ranks, prepared)
    if not points:
        return
    failure: Exception | None = None
    with _set_aside(prepared) as own:
        try:
            yield from steps()
        except Exception as error:  # whatever it is, the other ranks wait to be told of it
            failure = error
    words = None if failure is None else f"{type(failure).__name__}: {failure}"
    try:
        shards = ranks.exchange(_Report(own, words))
    except Exception:  # the exchange failed; what this rank saw is kept, and its own failure comes first
        _take(prepared, [own])
        if failure is not None:
            raise failure from failure.__cause__
        raise
    if failure is not None:
        _take(prepared, [own])
        raise failure
    _take(prepared, shards)
    if not progress_of(prepared).batches:
        raise CalibrationError(
            "There was no batch to calibrate with on any rank.",
            expected="at least one batch, since activations are quantized statically",
            got=f"{ranks.size} empty shards",
        )


@contextlib.contextmanager
def _set_aside(prepared: GraphModule) -> Iterator[_Shard]:
    """Let the points of a model begin anew, and bring back in the end what they had seen before.

    Yields:
        What they see in between, when it is over. If that ends in an interrupt, they keep it themselves.
    """
    points, own = observed_points(prepared), _Shard()
    before = {name: point.observer for name, point in points.items()}
    progress = progress_of(prepared)
    for point in points.values():
        point.observer = point.observer.fresh()
    set_progress(prepared, Progress())
    is_through = False
    try:
        yield own
        is_through = True
    finally:
        own.batches = progress_of(prepared).batches
        own.states = {name: point.observer.state() for name, point in points.items()}
        for name, point in points.items():
            point.observer = before[name]
        set_progress(prepared, progress)
        if not is_through:
            _take(prepared, [own])


def _take(prepared: GraphModule, shards: list[_Shard]) -> None:
    """Add what was seen to what the model has seen before."""
    points = observed_points(prepared)
    for name, observer in merged_observers(points, [shard.states for shard in shards]).items():
        points[name].observer = observer
    before = progress_of(prepared)
    batches = before.batches + sum(shard.batches for shard in shards)
    set_progress(prepared, attrs.evolve(before, batches=batches, is_merged=True))


def _check_agreement(ranks: Ranks, prepared: GraphModule) -> None:
    """Refuse ranks that prepared different models, or whose models have seen different things before."""
    here = {**identity_of(prepared), "what was seen before": _digest_of_states(prepared)}
    for rank, there in enumerate(ranks.exchange(_Report(here))):
        check_identity(f"Rank {rank} calibrates another model than rank {ranks.rank}", here, there)


def _digest_of_states(prepared: GraphModule) -> str:
    return digest(
        f"{name}.{key}: {leaf_text(value)}"
        for name, point in observed_points(prepared).items()
        for key, value in point.observer.state().items()
    )
