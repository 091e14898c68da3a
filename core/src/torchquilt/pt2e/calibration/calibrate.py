"""calibrate: show the prepared model its data."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch.fx import GraphModule

from torchquilt._internal.terminal import progress_if
from torchquilt._internal.torch_defaults import default_global_state
from torchquilt.errors import CalibrationError, ModelError
from torchquilt.graph.function_transforms import leaving_transforms
from torchquilt.graph.signature import call_arguments
from torchquilt.pt2e.calibration.checkpoint import Checkpoint, Seen
from torchquilt.pt2e.calibration.convergence import progress_of, set_progress
from torchquilt.pt2e.calibration.distributed import Ranks, calibrate_on_all_ranks
from torchquilt.pt2e.calibration.interrupts import between_batches
from torchquilt.pt2e.calibration.merging import Calibration
from torchquilt.pt2e.calibration.single_rows import batches_of_rows, is_dataset
from torchquilt.pt2e.model_record import stage_in_words, stage_of
from torchquilt.pt2e.observer_points import observed_points

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def calibrate(
    prepared: GraphModule,
    batches: Iterable[object] | Calibration,
    *,
    limit: int | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    group: ProcessGroup | None = None,
) -> GraphModule:
    """Run batches through a prepared model, without gradients, so that its observers see them.

    It may be called again with more data; what was observed is kept, also when a batch fails, and when it is
    interrupted. :func:`torchquilt.calibration_of` says what was seen. Where nothing is quantized statically
    there is nothing to observe, and no batch is read.

    Args:
        prepared: what :func:`torchquilt.prepare_pt2e` returned.
        batches: each one a tuple or list of positional inputs, a mapping of keyword inputs, or the
            only input by itself. A generator is read one batch at a time. Each row of a Hugging Face dataset
            is a batch of one, of the columns that are inputs of the model. What
            :func:`torchquilt.merge_calibration` returns stands for the batches that others have seen.
        limit: at most so many batches, on each rank.
        progress: show how far it is on standard error, where that is a terminal.
        checkpoint: a file that is given the state every ten seconds, at the end, and when it is interrupted.
            Where it is there already, the calibration in it goes on: the batches that it has seen have to
            come again, and are compared and not run. With a group each rank has a file of its own, with
            ``.rank-<rank>-of-<size>`` behind the name.
        group: a process group (of ``torch.distributed``), every rank of which calls this with data of its
            own, of which there may be none. Every rank ends in the same state, that of one process with all
            of the data. How long a rank waits for another is said by the timeout of the group.

    Returns:
        ``prepared``, so that calls can be nested.

    Raises:
        ModelError: the model is not a prepared one.
        CalibrationError: a batch does not fit the model, there was no batch where one is needed, the
            checkpoint is that of another model, quantizer or data, or another rank failed.
        OSError: the checkpoint cannot be read or written.
    """
    _check_is_prepared(prepared)
    if isinstance(batches, Calibration):
        batches.add_to(prepared)
        return prepared
    _check_batches(batches, limit)
    if group is not None:
        ranks = Ranks(group)
        steps = calibrate_on_all_ranks(
            prepared,
            ranks,
            lambda: _steps(prepared, batches, limit, ranks.path(checkpoint), may_be_empty=True),
        )
    else:
        steps = calibrate_in_steps(prepared, batches, limit=limit, checkpoint=checkpoint)
    with progress_if(progress, "calibrating", number_of(batches, limit), "batches") as show:
        for done in steps:
            show(done)
    return prepared


def calibrate_in_steps(
    prepared: GraphModule,
    batches: Iterable[object],
    *,
    limit: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Iterator[int]:
    """Do what :func:`calibrate` does, one batch for each step of an iterator, as a progress bar wants it.

    Yields:
        How many batches the model has seen: after each one, and first of all after those of the checkpoint.
    """
    _check_is_prepared(prepared)
    _check_batches(batches, limit)
    yield from _steps(prepared, batches, limit, checkpoint)


def _steps(
    prepared: GraphModule,
    batches: Iterable[object],
    limit: int | None,
    checkpoint: str | os.PathLike[str] | None,
    *,
    may_be_empty: bool = False,
) -> Iterator[int]:
    if not observed_points(prepared):
        return
    if is_dataset(batches):
        batches = batches_of_rows(batches, prepared)
    file = None if checkpoint is None else Checkpoint(prepared, checkpoint)
    earlier = Seen() if file is None else file.open()
    seen = Seen()
    before: list[tuple[int, int]] | None = None
    try:
        for batch in itertools.islice(batches, limit):
            # To digest a batch takes time, and only a checkpoint needs it.
            now = Seen(seen.batches + 1) if file is None else seen.and_then(batch)
            if now.batches > earlier.batches:
                before = None if file is None else _updates(prepared)
                with between_batches():
                    _run(prepared, batch, seen.batches)
                    seen, before = now, None
                    set_progress(prepared, progress_of(prepared).after_batch(prepared))
                if file is not None:
                    file.save_now_and_then(seen)
                yield seen.batches
                continue
            seen = now
            if file is not None and seen.batches == earlier.batches:
                _check_same_data(seen, earlier, file.path)
                file.restore()
                yield seen.batches
    except BaseException:
        # Where some points have seen a batch and some have not, the file stays as it is.
        is_whole = before is None or before == _updates(prepared)
        if file is not None and seen.batches > earlier.batches and is_whole:
            file.save(seen)
        raise
    if seen.batches < earlier.batches or not may_be_empty:
        _check_is_enough(seen, earlier, limit, checkpoint)
    set_progress(prepared, progress_of(prepared).compare(prepared))
    if file is not None:
        file.save(seen, is_complete=True)


def _updates(prepared: GraphModule) -> list[tuple[int, int]]:
    """Number that changes when an observer point is shown something."""
    observers = (point.observer for point in observed_points(prepared).values())
    return [(int(observer.count), int(observer.ignored)) for observer in observers]


def missing_data(prepared: GraphModule, *, wanted: str, got: str, remedy: str) -> CalibrationError:
    """The error for a prepared model that has to be calibrated, and for which there are no batches.

    Args:
        prepared: the model.
        wanted: what was to be given, in words of the caller.
        got: what was given.
        remedy: what to do.
    """
    points = observed_points(prepared)
    return CalibrationError(
        "There is no data to calibrate with.",
        node=next(iter(points.values())).names[0],
        expected=f"{wanted}, since the ranges of {len(points)} activations have to be found",
        got=got,
        remedy=remedy,
    )


def number_of(batches: Iterable[object], limit: int | None) -> int | None:
    """Number of batches to come, where that is known."""
    try:
        number = len(batches)  # type: ignore[arg-type]
    except TypeError:  # a generator, or a loader of an iterable dataset
        return limit
    return number if limit is None else min(number, limit)


def _check_is_prepared(prepared: GraphModule) -> None:
    if stage_of(prepared) != "prepared":
        raise ModelError(
            "Only a prepared model can be calibrated.",
            expected="what prepare_pt2e returned",
            got=stage_in_words(prepared),
            remedy="call torchquilt.prepare_pt2e(exported, quantizer) first",
        )


def _check_same_data(seen: Seen, earlier: Seen, path: os.PathLike[str]) -> None:
    if seen != earlier:
        raise CalibrationError(
            f"{path} is the checkpoint of a calibration with other data.",
            expected=f"the {earlier.batches} batches that it has seen, in the same order",
            got=f"{seen.batches} batches that are not the same",
            remedy="go on with the data that it was made with (more may follow), or remove the file to begin "
            "anew",
        )


def _check_is_enough(
    seen: Seen, earlier: Seen, limit: int | None, checkpoint: str | os.PathLike[str] | None
) -> None:
    if seen.batches < earlier.batches:
        raise CalibrationError(
            f"{checkpoint} is the checkpoint of a calibration with more data.",
            expected=f"at least the {earlier.batches} batches that it has seen",
            got=f"{seen.batches} batches" + (f", with limit={limit}" if seen.batches == limit else ""),
            remedy="go on with the data that it was made with, or remove the file to begin anew",
        )
    if seen.batches == 0:
        raise CalibrationError(
            "There was no batch to calibrate with.",
            expected="at least one batch, since activations are quantized statically",
            got="an empty iterable" if limit != 0 else "limit=0",
            remedy="pass batches like the example inputs; a generator can be read only once",
        )


def _check_batches(batches: object, limit: int | None) -> None:
    """Refuse one batch where several are meant: going through it would take it apart."""
    if isinstance(batches, Mapping) and batches and all(map(is_dataset, batches.values())):
        raise CalibrationError(
            "These are several datasets.",
            expected="one of them",
            got=", ".join(map(str, batches)),
            remedy=f"choose one: calibrate(prepared, dataset[{next(iter(batches))!r}])",
        )
    if isinstance(batches, (torch.Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        raise CalibrationError(
            "These are no batches to go through.",
            expected="an iterable of batches: a list, a DataLoader, a generator",
            got=_shape_of(batches),
            remedy="for one batch pass a list of it: calibrate(prepared, [batch])",
        )
    if limit is not None and (not isinstance(limit, int) or limit < 0):
        raise CalibrationError(
            "The limit is a number of batches.", expected="None, or an int from 0", got=repr(limit)
        )


def _run(prepared: GraphModule, batch: object, number: int) -> None:
    args, kwargs = call_arguments(prepared, batch)
    try:
        with default_global_state(), leaving_transforms():
            prepared(*args, **kwargs)
    except Exception as error:
        names = [str(node.target) for node in prepared.graph.nodes if node.op == "placeholder"]
        raise CalibrationError(
            f"Batch {number} (counted from 0) does not go through the model.",
            batch=number,
            expected=f"inputs {', '.join(names)}, shaped like the example inputs of the export",
            got=f"{_shape_of(batch)}: {type(error).__name__}: {error}",
            remedy=f"{_hint(batch, names)}; what the batches before it showed is kept",
        ) from error


def _hint(batch: object, names: list[str]) -> str:
    """Remedy for a batch that may hold labels or the like."""
    more = [key for key in batch if key not in names] if isinstance(batch, Mapping) else []
    if more and all(name in batch for name in names):  # type: ignore[operator]
        return f"leave out {', '.join(map(str, more))}, which the model does not take"
    if isinstance(batch, (tuple, list)) and len(batch) > len(names) > 0:
        return f"pass what the model takes: (batch[:{len(names)}] for batch in batches)"
    return "see the cause above"


def _shape_of(value: object) -> str:
    """A batch in short: shapes and dtypes instead of numbers."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shape_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(_shape_of(item) for item in value) + ")"
    return repr(value)
