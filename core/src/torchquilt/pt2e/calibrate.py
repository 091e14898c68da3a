"""calibrate: show the prepared model its data."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.fx import GraphModule

from torchquilt.errors import CalibrationError, ModelError
from torchquilt.graph.inputs import call_arguments
from torchquilt.pt2e.checkpoint import Checkpoint, Seen
from torchquilt.pt2e.points import observed_points
from torchquilt.pt2e.stage import stage_of


def calibrate(
    prepared: GraphModule,
    batches: Iterable[Any],
    *,
    limit: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> GraphModule:
    """Run batches through a prepared model, without gradients, so that its observers see them.

    It may be called again with more data; what was observed is kept, also when a batch fails. Where
    nothing is quantized statically there is nothing to observe, and no batch is read.

    Args:
        prepared: what :func:`torchquilt.prepare_pt2e` returned.
        batches: each one a tuple or list of positional inputs, a mapping of keyword inputs, or the
            only input by itself. A generator is read one batch at a time.
        limit: at most so many batches.
        checkpoint: a file that holds the state after each batch. Where it is there already, the calibration
            in it goes on: the batches that it has seen have to come again, and are compared and not run.

    Returns:
        ``prepared``, so that calls can be nested.

    Raises:
        ModelError: the model is not a prepared one.
        CalibrationError: a batch does not fit the model, there was no batch where one is needed, or the
            checkpoint is that of another model, quantizer or data.
        OSError: the checkpoint cannot be read or written.
    """
    for _ in calibrate_in_steps(prepared, batches, limit=limit, checkpoint=checkpoint):
        pass
    return prepared


def calibrate_in_steps(
    prepared: GraphModule,
    batches: Iterable[Any],
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
    if not observed_points(prepared):
        return
    file = None if checkpoint is None else Checkpoint(prepared, checkpoint)
    earlier = Seen() if file is None else file.open()
    seen = Seen()
    for batch in itertools.islice(batches, limit):
        # To digest a batch takes time, and only a checkpoint needs it.
        seen = Seen(seen.batches + 1) if file is None else seen.and_then(batch)
        if seen.batches > earlier.batches:
            _run(prepared, batch, seen.batches - 1)
            if file is not None:
                file.save(seen)
            yield seen.batches
        elif file is not None and seen.batches == earlier.batches:
            _check_same_data(seen, earlier, file.path)
            file.restore()
            yield seen.batches
    _check_is_enough(seen, earlier, limit, checkpoint)


def _check_is_prepared(prepared: GraphModule) -> None:
    if stage_of(prepared) != "prepared":
        raise ModelError(
            "Only a prepared model can be calibrated.",
            expected="what prepare_pt2e returned",
            got=stage_of(prepared) or f"{type(prepared).__module__}.{type(prepared).__qualname__}",
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
        with torch.no_grad():
            prepared(*args, **kwargs)
    except Exception as error:
        names = [str(node.target) for node in prepared.graph.nodes if node.op == "placeholder"]
        raise CalibrationError(
            f"Batch {number} (counted from 0) does not go through the model.",
            batch=number,
            expected=f"inputs {', '.join(names)}, shaped like the example inputs of the export",
            got=f"{_shape_of(batch)}: {type(error).__name__}: {error}",
            remedy="see the cause above; what the batches before it showed is kept",
        ) from error


def _shape_of(value: object) -> str:
    """A batch in short: shapes and dtypes instead of numbers."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shape_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(_shape_of(item) for item in value) + ")"
    return repr(value)
