"""Notice of an optimizer that updates other parameters than those of the model that is trained.

Parameters of a prepared model are copies. An optimizer that was made for the float model before never moves
them, and nothing fails.
"""

from __future__ import annotations

import warnings

import torch
from torch.fx import GraphModule

from torchquilt.pt2e.qat.points import TrainingPoint

_KEY = "torchquilt_first_parameters"


def note_parameters(model: GraphModule) -> None:
    """Remember where the parameters of a model are, and how often they have been written to."""
    model.meta[_KEY] = _state(model)


def _state(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    of_points = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, TrainingPoint)
        for parameter in module.parameters()
    }
    return {
        name: (parameter.data_ptr(), parameter._version)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in of_points
    }


def warn_if_nothing_was_updated(model: GraphModule) -> None:
    """Warn of a model that gradients were computed for, and that is as it was prepared."""
    has_gradients = any(parameter.grad is not None for parameter in model.parameters())
    if has_gradients and model.meta.get(_KEY) == _state(model):
        warnings.warn(
            "No parameter of this model was updated since prepare_qat_pt2e, though gradients were computed. "
            "Its parameters are copies of the float model's: make the optimizer from "
            "prepared.parameters(), after preparing.",
            UserWarning,
            stacklevel=3,
        )
