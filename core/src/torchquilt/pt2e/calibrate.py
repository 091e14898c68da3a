"""calibrate: show the prepared model its data."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.fx import GraphModule

from torchquilt.errors import CalibrationError, ModelError
from torchquilt.graph.inputs import call_arguments
from torchquilt.pt2e.points import ObservedPoint
from torchquilt.pt2e.stage import stage_of


def calibrate(prepared: GraphModule, batches: Iterable[Any], *, limit: int | None = None) -> GraphModule:
    """Run batches through a prepared model, without gradients, so that its observers see them.

    It may be called again with more data; what was observed is kept, also when a batch fails. Where
    nothing is quantized statically there is nothing to observe, and no batch is read.

    Args:
        prepared: what :func:`torchquilt.prepare_pt2e` returned.
        batches: each one a tuple or list of positional inputs, a mapping of keyword inputs, or the
            only input by itself. A generator is read one batch at a time.
        limit: at most so many batches.

    Returns:
        ``prepared``, so that calls can be nested.

    Raises:
        ModelError: the model is not a prepared one.
        CalibrationError: a batch does not fit the model, or there was no batch where one is needed.
    """
    if stage_of(prepared) != "prepared":
        raise ModelError(
            "Only a prepared model can be calibrated.",
            expected="what prepare_pt2e returned",
            got=stage_of(prepared) or f"{type(prepared).__module__}.{type(prepared).__qualname__}",
            remedy="call torchquilt.prepare_pt2e(exported, quantizer) first",
        )
    _check_batches(batches, limit)
    if not any(isinstance(module, ObservedPoint) for module in prepared.modules()):
        return prepared
    number = 0
    with torch.no_grad():
        for batch in itertools.islice(batches, limit):
            _run(prepared, batch, number)
            number += 1
    if number == 0:
        raise CalibrationError(
            "There was no batch to calibrate with.",
            expected="at least one batch, since activations are quantized statically",
            got="an empty iterable" if limit != 0 else "limit=0",
            remedy="pass batches like the example inputs; a generator can be read only once",
        )
    return prepared


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
        prepared(*args, **kwargs)
    except Exception as error:
        names = [str(node.target) for node in prepared.graph.nodes if node.op == "placeholder"]
        raise CalibrationError(
            f"Batch {number} (counted from 0) does not go through the model.",
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
