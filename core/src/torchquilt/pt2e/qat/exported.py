"""Switching exported models between training and evaluation, under the names that users know."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from torchquilt.errors import ModelError
from torchquilt.graph.code_generation import outdate
from torchquilt.graph.subgraphs import regions
from torchquilt.graph.training_mode import is_in_training, set_training, switched_nodes
from torchquilt.pt2e.model_record import stage_in_words, stage_of

#: ``node.meta`` of an operator of an exported model that is switched: what was exported is only seen once.
_SWITCHED_KEY = "torchquilt_switched"


def move_exported_model_to_train(model: torch.nn.Module) -> torch.nn.Module:
    """Switch an exported model to training mode; changes and returns ``model``.

    Only the flags that say training are switched; every other literal stays as it was.

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
    nodes = [node for region in regions(model) for node in region.module.graph.nodes]
    if not any(_SWITCHED_KEY in node.meta for node in nodes):
        for node in switched_nodes(model):
            node.meta[_SWITCHED_KEY] = True
    for node in nodes:
        if node.meta.get(_SWITCHED_KEY) and is_in_training(node) is not value:
            set_training(node, value)
    for region in regions(model):
        outdate(region.module)
    for module in model.modules():
        module.training = value
    return model
