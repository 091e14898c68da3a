"""Values of nodes while batches go through a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torchquilt._internal.torch_defaults import default_global_state
from torchquilt.accuracy.running import checked_batches, run_on_each
from torchquilt.errors import AccuracyError
from torchquilt.graph.code_generation import generate_code, outdate
from torchquilt.graph.edits import copy_model
from torchquilt.graph.function_transforms import leaving_transforms
from torchquilt.graph.signature import call_arguments


class _Shown(torch.nn.Module):
    """Shows what it is called with to a function."""

    def __init__(self, visit: Callable[..., None]) -> None:
        super().__init__()
        self.visit = visit

    def forward(self, *values: Any) -> None:
        """Show the values."""
        self.visit(*values)


def observe(
    model: GraphModule,
    visitors: Mapping[Node, tuple[tuple[Node, ...], Callable[..., None]]],
    batches: Iterable[object],
    *,
    kept: Iterable[object] = (),
) -> int:
    """Run batches through a copy of a model, and show functions the values of nodes; returns how many ran.

    Args:
        model: the model, which is left as it was, what it writes to as well.
        visitors: a node of the outermost graph → nodes up to it, and the function that is called with their
            values right after it has been computed.
        batches: as for :func:`torchquilt.calibrate`.
        kept: parts of the model that are not copied.

    Raises:
        AccuracyError: there is no batch, or one does not go through the model.
    """
    watched = copy_model(model, kept=kept)
    copies = dict(zip(model.graph.nodes, watched.graph.nodes, strict=True))
    for number, (node, (shown, visit)) in enumerate(visitors.items()):
        name = f"shown_{number}"
        watched.add_module(name, _Shown(visit))
        with watched.graph.inserting_after(copies[node]):
            watched.graph.call_module(name, tuple(copies[each] for each in shown))
    outdate(watched)
    generate_code(watched)
    return run_on_each(checked_batches(batches, watched), partial(_run, watched), "observing")


def _run(model: GraphModule, batch: Any, number: int) -> None:
    args, kwargs = call_arguments(model, batch)
    try:
        with torch.no_grad(), default_global_state(), leaving_transforms():
            model(*args, **kwargs)
    except Exception as error:
        raise AccuracyError(
            f"Batch {number} (counted from 0) does not go through the model.",
            expected="inputs like the example inputs of the export",
            got=f"{type(error).__name__}: {error}",
            remedy="see the cause above; pass batches as for torchquilt.calibrate",
        ) from error
