"""Calibrations of one prepared model that were run apart, as one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
from torch.fx import GraphModule

from torchquilt.errors import CalibrationError, ModelError
from torchquilt.pt2e.calibration.checkpoint import check_identity, identity_of, load_checkpoint
from torchquilt.pt2e.calibration.convergence import progress_of, set_progress
from torchquilt.pt2e.model_record import stage_of
from torchquilt.pt2e.observer_points import ObservedPoint, observed_points


@attrs.frozen(repr=False, eq=False)
class Calibration:
    """Statistics of calibrations of one prepared model, apart from it. :func:`torchquilt.calibrate` takes it.

    Args:
        identity: what model, quantizer and observers it is of, as texts.
        shards: ``(where it is from, batches, name of each point → state of its observer)`` of each.
    """

    identity: dict[str, str]
    shards: tuple[tuple[str, int, dict[str, dict[str, Any]]], ...]

    @property
    def batches(self) -> int:
        """Number of batches that were seen in all."""
        return sum(batches for _, batches, _ in self.shards)

    def __repr__(self) -> str:
        return f"<Calibration of {self.batches} batches in {len(self.shards)} shards>"

    def add_to(self, prepared: GraphModule) -> None:
        """Let a prepared model have seen all of it, beside what it has seen itself; all of it or nothing.

        Raises:
            ModelError: the model is not a prepared one.
            CalibrationError: it is another model than this is of, or its observers cannot be merged.
        """
        if stage_of(prepared) != "prepared":
            raise ModelError(
                "Only a prepared model can take what a calibration saw.",
                expected="what prepare_pt2e returned",
            )
        check_identity("This is a calibration of something else", identity_of(prepared), self.identity)
        points = observed_points(prepared)
        merged = merged_observers(points, [states for _, _, states in self.shards])
        for name, observer in merged.items():
            points[name].observer = observer
        before = progress_of(prepared)
        set_progress(prepared, attrs.evolve(before, batches=before.batches + self.batches, is_merged=True))


def merged_observers(
    points: dict[str, ObservedPoint], shards: Iterable[dict[str, dict[str, Any]]]
) -> dict[str, Any]:
    """For each point an observer that saw what its own did and what the states of all shards say.

    Raises:
        CalibrationError: the observers depend on the order of the data.
    """
    check_order_does_not_matter(points)
    merged = {}
    for name, point in points.items():
        observer = point.observer
        found = observer.from_state(observer.spec, observer.state())
        for states in shards:
            found.merge(observer.from_state(observer.spec, states[name]))
        merged[name] = found
    return merged


def check_order_does_not_matter(points: dict[str, ObservedPoint]) -> None:
    """Refuse observers of which several cannot be merged.

    Raises:
        CalibrationError: one of the points has such an observer.
    """
    for point in points.values():
        if point.observer.order_matters:
            raise CalibrationError(
                "What was observed apart cannot be merged: the observer depends on the order of the data.",
                node=", ".join(point.names),
                expected="an observer that does not, such as 'histogram' or 'minmax'",
                got=type(point.observer).__name__,
                remedy="prepare with another activation_observer, or calibrate in one process",
            )


def merge_calibration(paths: Iterable[str | os.PathLike[str]]) -> Calibration:
    """Merge several calibrations of one prepared model, from their checkpoints.

    Each of them was written by ``calibrate(prepared, shard, checkpoint=path)``, on whatever machine, and ran
    to its end. To convert what all of them saw, hand the result to :func:`torchquilt.calibrate` instead of
    batches: ``convert_pt2e(calibrate(prepared, merge_calibration(paths)))``. It is the model that one process
    makes of all the data.

    Args:
        paths: the checkpoints, in any order.

    Raises:
        CalibrationError: there is none, one of them is none, is of another model, quantizer or observers than
            the first, did not run to its end, or saw the same data as another one.
        OSError: one of them cannot be read.
    """
    if isinstance(paths, (str, os.PathLike)):
        raise CalibrationError("Several checkpoints are merged.", expected="a list of paths", got=repr(paths))
    files = [Path(path) for path in paths]
    if not files:
        raise CalibrationError("There is no calibration to merge.", expected="at least one path", got="none")
    found = {file: load_checkpoint(file) for file in files}
    first = found[files[0]]
    seen: dict[str, Path] = {}
    for number, file in enumerate(files):
        data = found[file]
        problem = f"{file} is a calibration of something else than {files[0]}"
        check_identity(problem, first["identity"], data["identity"])
        if not data["is_complete"]:
            raise CalibrationError(
                f"{file} is the checkpoint of a calibration that did not run to its end.",
                expected="one that has seen all of its data",
                got=f"{data['batches']} batches so far",
                remedy="give the same call of calibrate again: it goes on from the file",
            )
        if (data["digest"] and data["digest"] in seen) or file in files[:number]:
            raise CalibrationError(
                f"{file} has seen the same data as {seen.get(data['digest'], file)}.",
                expected="each shard of the data once",
                got=f"the same {data['batches']} batches",
                remedy="leave one of them out",
            )
        seen[data["digest"]] = file
    shards = ((str(file), found[file]["batches"], found[file]["state"]["observers"]) for file in files)
    return Calibration(first["identity"], tuple(shards))
