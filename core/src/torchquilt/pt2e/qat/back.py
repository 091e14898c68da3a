"""From a model that was trained to a calibrated one, which convert reads."""

from __future__ import annotations

import warnings
from typing import Any, NoReturn

import torch
from torch.fx import GraphModule

from torchquilt._internal.text_tables import few
from torchquilt.errors import CalibrationError
from torchquilt.graph.edits import copy_model
from torchquilt.graph.passes import Pass, run_passes
from torchquilt.graph.subgraphs import regions
from torchquilt.observers import Observer, QParams
from torchquilt.pt2e.choices import ChosenConstant
from torchquilt.pt2e.model_record import set_stage
from torchquilt.pt2e.observer_points import (
    ConstantPoint,
    DynamicPoint,
    FixedPoint,
    ObservedPoint,
    QuantizationPoint,
)
from torchquilt.pt2e.qat.agreement import Agreement
from torchquilt.pt2e.qat.computed_points import DerivedTrainingPoint, DynamicTrainingPoint, KnownPoint
from torchquilt.pt2e.qat.followed_points import ActivationPoint, WeightPoint
from torchquilt.pt2e.qat.learned_points import LearnedPoint
from torchquilt.pt2e.qat.optimizer_check import warn_if_nothing_was_updated
from torchquilt.pt2e.qat.points import TrainingPoint, training_points
from torchquilt.pt2e.qat.unwiring import back_to_constants
from torchquilt.spec.qspec import QuantizationSpec


def as_calibrated(model: GraphModule) -> GraphModule:
    """A calibrated model with the weights and ranges of one that was trained, which is left as it was.

    Args:
        model: what :func:`torchquilt.prepare_qat_pt2e` returned.

    Warns:
        UserWarning: fake quantize is off somewhere, or no parameter was updated though it was trained.
    """
    warn_if_nothing_was_updated(model)
    _warn_of_float(model)
    return calibrated_copy(model)


def calibrated_copy(model: GraphModule) -> GraphModule:
    """The same without a word."""
    copied = copy_model(model).eval()
    passes = (
        Pass("drop_agreement", _drop_agreement),
        Pass("back_to_constants", back_to_constants),
        Pass("calibrated_points", _calibrated_points),
    )
    copied = run_passes(copied, passes)
    set_stage(copied, "prepared")
    return copied


def _warn_of_float(model: GraphModule) -> None:
    names = [", ".join(point.names) for point in training_points(model).values() if not point.quantizes]
    if names:
        warnings.warn(
            f"Fake quantize is off at {few(names, 3, '; ')}. The converted model quantizes there, so "
            "it computes something else than the model does now. Call torchquilt.qat.enable_fake_quantize "
            "before you evaluate and convert.",
            UserWarning,
            stacklevel=4,
        )


def _drop_agreement(model: GraphModule) -> GraphModule:
    for name, held in list(model.named_children()):
        if isinstance(held, Agreement):
            for node in model.graph.find_nodes(op="call_module"):
                if node.target == name:
                    model.graph.erase_node(node)
            model.delete_submodule(name)
    return model


def _calibrated_points(model: GraphModule) -> GraphModule:
    for region in regions(model):
        for name, held in list(region.module.named_children()):
            if isinstance(held, TrainingPoint):
                region.module.add_module(name, _calibrated(held))
    return model


def _calibrated(point: TrainingPoint) -> QuantizationPoint[Any]:
    """The point of a calibrated model for one of training."""
    if isinstance(point, KnownPoint):
        return FixedPoint(point.spec, point.names)
    if isinstance(point, DynamicTrainingPoint):
        return DynamicPoint(point.spec, point.names)
    if isinstance(point, DerivedTrainingPoint):
        return point.calibrated
    if isinstance(point, WeightPoint) and point.observes:
        return ConstantPoint(point.spec, point.names)
    if isinstance(point, WeightPoint) or (isinstance(point, LearnedPoint) and point.is_constant):
        return ConstantPoint(point.spec, point.names, ChosenConstant(point.qparams()))
    assert isinstance(point, (ActivationPoint, LearnedPoint))
    return ObservedPoint(point.spec, _TrainedRange(point.spec, point), point.names)


class _TrainedRange(Observer):
    """A range that training found. It sees no more data."""

    def __init__(self, spec: QuantizationSpec, point: ActivationPoint | LearnedPoint) -> None:
        super().__init__(spec)
        self.count = int(point.has_data)
        self._found = point.qparams() if point.has_data else None

    def update(self, tensor: torch.Tensor) -> NoReturn:
        """Refuse more data."""
        raise CalibrationError("What was trained is not calibrated any more.")

    def merge(self, other: Observer) -> NoReturn:
        """Refuse what others saw."""
        raise CalibrationError("What was trained is not calibrated any more.")

    def qparams(self) -> QParams:
        """The parameters that training used last."""
        self._check_has_data()
        assert self._found is not None
        return self._found

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Floats that the smallest and the largest integer stand for."""
        found = self.qparams()
        low, high = (end - found.zero_point for end in (self.spec.quant_min, self.spec.quant_max))
        return low * found.scale, high * found.scale
