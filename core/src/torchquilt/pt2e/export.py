"""Export of a module for those who did not export it themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from torchquilt.errors import ModelError
from torchquilt.graph.signature import batch_arguments


def export_model(
    model: object, example_inputs: object, dynamic_shapes: Any = None
) -> ExportedProgram | GraphModule:
    """Export a module in evaluation mode; what is exported already is taken as it is.

    The module is left as it was, its mode as well.

    Args:
        model: a module, or an exported model.
        example_inputs: one batch: a tuple of positional inputs, a mapping of keyword inputs, or the only
            input by itself.
        dynamic_shapes: as for ``torch.export.export``.

    Raises:
        ModelError: it cannot be exported.
    """
    if isinstance(model, (ExportedProgram, GraphModule)):
        if dynamic_shapes is not None:
            raise ModelError(
                "This model is exported already, so dynamic_shapes has no effect.",
                expected="no dynamic_shapes with it, or a torch.nn.Module",
                got=type(model).__name__,
                remedy="give the dynamic shapes to torch.export.export",
            )
        return model
    if not isinstance(model, torch.nn.Module) or example_inputs is None:
        raise ModelError(
            "There is nothing to export.",
            expected="a torch.nn.Module with one batch of inputs, or an exported model",
            got=f"{type(model).__module__}.{type(model).__qualname__}, example_inputs={example_inputs!r:.60}",
            remedy="give an instance of the module, and a batch such as (input,)",
        )
    args, kwargs = batch_arguments(example_inputs)
    try:
        with _in_evaluation_mode(model):
            return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes)
    except Exception as error:  # whatever the model's own code raises, too
        raise ModelError(
            f"torch.export cannot export {type(model).__qualname__}.",
            expected="a model that torch.export.export(model.eval(), example_inputs) takes",
            got=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
            remedy="mend the model or the inputs; the cause of this error has torch's advice in full",
        ) from error


@contextlib.contextmanager
def _in_evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Have a module in evaluation mode for as long as the block runs; each part then has its mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
