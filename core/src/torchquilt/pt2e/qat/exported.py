"""Switching exported models between training and evaluation, under the names that users know."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from torchquilt.errors import ModelError
from torchquilt.graph.code_generation import outdate
from torchquilt.graph.subgraphs import regions
from torchquilt.graph.training_mode import is_in_training, mark_switched, set_training, switch_counters
from torchquilt.pt2e.model_record import stage_in_words, stage_of


def move_exported_model_to_train(model: torch.nn.Module) -> torch.nn.Module:
    """Switch an exported model to training mode; changes and returns ``model``.

    Only the flags that say training are switched, and whether batches are counted; every other literal stays
    as it was.

    Args:
        model: the ``.module()`` of an exported program, or what :func:`torchquilt.prepare_qat_pt2e`
            returned, for which it is ``model.train()``.

    Raises:
        ModelError: it is no exported model, or one that was prepared for calibration or converted.
    """
    return _move(model, True)


def move_exported_model_to_eval(model: torch.nn.Module) -> torch.nn.Module:
    """Switch an exported model to evaluation mode; see :func:`move_exported_model_to_train`."""
    return _move(model, False)


def _move(model: torch.nn.Module, value: bool) -> torch.nn.Module:
    stage = stage_of(model)
    if stage == "trainable":
        return model.train(value)
    if not isinstance(model, GraphModule) or stage is not None:
        raise ModelError(
            "Only an exported model is moved between training and evaluation.",
            expected="torch.export.export(...).module(), or what prepare_qat_pt2e returned",
            got=stage_in_words(model),
            remedy="call train() or eval() of the model itself",
        )
    for node in mark_switched(model):
        if is_in_training(node) is not value:
            set_training(node, value)
    switch_counters(model, value)
    for region in regions(model):
        outdate(region.module)
    for module in model.modules():
        module.training = value
    return model
