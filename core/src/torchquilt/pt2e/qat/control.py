"""Switches of training: which ranges are followed, what is fake quantized, which statistics move."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

import attrs
import torch

from torchquilt.errors import ModelError
from torchquilt.pt2e.qat.agreement import Agreement
from torchquilt.pt2e.qat.batch_norm import TrainedNorm
from torchquilt.pt2e.qat.learned_points import LearnedPoint
from torchquilt.pt2e.qat.points import TrainingPoint, training_points


def freeze_observers(model: torch.nn.Module, module_name: str | None = None) -> None:
    """Keep ranges as they are: in training they follow nothing any more, and learned scales stay.

    Args:
        model: what :func:`torchquilt.prepare_qat_pt2e` returned, or a module that holds it.
        module_name: a module path of the float model, or a pattern such as ``"layer1.*"``, for the ranges
            of what its operators read and return; all of them without.

    Raises:
        ModelError: the model is not such a one, or the pattern is about nothing in it.
    """
    _let_observe(model, module_name, False)


def unfreeze_observers(model: torch.nn.Module, module_name: str | None = None) -> None:
    """Let ranges be followed again; see :func:`freeze_observers`."""
    _let_observe(model, module_name, True)


def _let_observe(model: torch.nn.Module, module_name: str | None, value: bool) -> None:
    for point in _points(model, module_name):
        point.allow(observes=value, quantizes=point.quantizes)


def enable_fake_quantize(model: torch.nn.Module, module_name: str | None = None) -> None:
    """Round again, where :func:`disable_fake_quantize` switched it off; arguments as there."""
    for point in _points(model, module_name):
        point.quantizes = True


def disable_fake_quantize(model: torch.nn.Module, module_name: str | None = None) -> None:
    """Round nothing, in training and in evaluation, as to see what rounding costs; ranges are followed.

    Args:
        model: as for :func:`freeze_observers`.
        module_name: likewise.
    """
    for point in _points(model, module_name):
        point.quantizes = False


def freeze_batch_norm(model: torch.nn.Module, module_name: str | None = None) -> None:
    """Use the running statistics in training, too, and leave them as they are.

    Args:
        model: as for :func:`freeze_observers`.
        module_name: path, or pattern of paths, of BatchNorms of the float model; all of them without.
    """
    for norm in _norms(model, module_name):
        norm.is_frozen = True


def unfreeze_batch_norm(model: torch.nn.Module, module_name: str | None = None) -> None:
    """Use the statistics of each batch again; see :func:`freeze_batch_norm`."""
    for norm in _norms(model, module_name):
        norm.is_frozen = False


def learned_scales(model: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    """The scales of a model that are learned, for a parameter group with a learning rate of their own."""
    for point in _points(model, None):
        if isinstance(point, LearnedPoint):
            yield point.scale


def _points(model: torch.nn.Module, module_name: str | None) -> list[TrainingPoint]:
    points = [*training_points(model).values()]
    paths = [path for point in points for path in point.standing.modules]
    found = [
        point
        for point in points
        if module_name is None or any(fnmatchcase(path, module_name) for path in point.standing.modules)
    ]
    _check_found(model, found, module_name, paths)
    return found


def _norms(model: torch.nn.Module, module_name: str | None) -> list[TrainedNorm]:
    norms = [module for module in model.modules() if isinstance(module, TrainedNorm)]
    found = [norm for norm in norms if module_name is None or fnmatchcase(norm.path, module_name)]
    _check_found(model, found, module_name, [norm.path for norm in norms])
    return found


def _check_found(model: torch.nn.Module, found: object, module_name: str | None, paths: list[str]) -> None:
    if not any(isinstance(module, Agreement) for module in model.modules()):
        raise ModelError(
            "Only a model that was prepared for training has these switches.",
            expected="what prepare_qat_pt2e returned",
            got=f"{type(model).__module__}.{type(model).__qualname__}",
            remedy="torchquilt.prepare_qat_pt2e(exported, quantizer)",
        )
    if module_name is not None and not found:
        raise ModelError(
            f"No module that this is about is called {module_name!r}.",
            expected=", ".join([*dict.fromkeys(paths)][:8]) or "none at all",
            got=module_name,
            remedy="give a module path of the float model, or a pattern such as 'layer1.*'",
        )


@attrs.frozen
class Schedule:
    """Epochs at which ranges and BatchNorms stop moving, as recipes for training have it.

    Args:
        freeze_observers_at: the epoch from which on ranges stay; None for never.
        freeze_batch_norm_at: the epoch from which on running statistics stay; None for never.
    """

    freeze_observers_at: int | None = None
    freeze_batch_norm_at: int | None = None

    def step(self, model: torch.nn.Module, epoch: int) -> None:
        """Freeze what is due; call it at the beginning of each epoch, counted from 0.

        It may be called again for the same epoch, as after a restart.
        """
        if self.freeze_observers_at is not None and epoch >= self.freeze_observers_at:
            freeze_observers(model)
        if self.freeze_batch_norm_at is not None and epoch >= self.freeze_batch_norm_at:
            freeze_batch_norm(model)
