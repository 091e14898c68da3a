"""Chosen integers beside the limits of kernels: where convert raises a scale, they are of no use."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from torchquilt.graph.edits import copy_model
from torchquilt.graph.subgraphs import nodes_of, regions
from torchquilt.observers import QParams
from torchquilt.pt2e.calibration.unreached import leave_or_refuse_unseen
from torchquilt.pt2e.choices import ChosenConstant
from torchquilt.pt2e.observer_points import ConstantPoint, QuantizationPoint
from torchquilt.pt2e.qdq_insertion import Conversion
from torchquilt.pt2e.scale_limits import BOUNDED_KEY


def settle(model: GraphModule) -> None:
    """Take choices back where convert would raise the scale that integers were chosen for; changes the model.

    There they become the nearest integers of the scale that convert finds.
    """
    if not any(BOUNDED_KEY in node.meta for node in nodes_of(model)):
        return
    points = [module for module in model.modules() if isinstance(module, QuantizationPoint)]
    copied = leave_or_refuse_unseen(copy_model(model, kept=points), "float")
    for region in regions(copied):
        own = {
            name: module
            for name, module in region.module.named_children()
            if isinstance(module, QuantizationPoint)
        }
        conversion = Conversion(region.module, own, fold_quantize=True)
        for name, raised in conversion.raised().items():
            point = own[name]
            if isinstance(point, ConstantPoint) and point.chosen is not None:
                values = conversion.values_of(point)
                point.chosen = _with_found_where_raised(point, point.chosen, raised, values)


def _with_found_where_raised(
    point: ConstantPoint, chosen: ChosenConstant, raised: QParams, values: list[torch.Tensor]
) -> ChosenConstant:
    """A choice with the nearest integers of the min-max range where a scale was raised."""
    is_raised = raised.scale != chosen.qparams.scale
    plain = ConstantPoint(point.spec, point.names).qparams_for(values)
    pairs = zip(plain, chosen.qparams, strict=True)
    qparams = QParams(*(torch.where(is_raised, new, old) for new, old in pairs))
    nearest = ChosenConstant.nearest(values[0], point.spec, qparams).integers
    assert nearest is not None
    return ChosenConstant(qparams, chosen.instead_of(nearest, qparams, point.spec))
