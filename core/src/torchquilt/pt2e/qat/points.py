"""Modules that fake quantize in a model that trains, one at each observer point of a prepared model.

In training mode a point fake quantizes, and follows the range of what it sees; in evaluation mode it computes
the bits that convert writes, and follows nothing. What it needs for that is in its buffers, so it is part of
``state_dict()``, moves with the model, and is what ``DistributedDataParallel`` broadcasts.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import attrs
import torch

from torchquilt._internal.torch_private import is_in_backward
from torchquilt.errors import CalibrationError
from torchquilt.observers import QParams, qparams_of_range
from torchquilt.observers.extremes import extremes_of_parts, sentinel_limit
from torchquilt.observers.qparams import as_rows
from torchquilt.pt2e.observer_points import QuantizationPoint
from torchquilt.pt2e.qat.fake_quantize import ChannelFactor, as_converted
from torchquilt.pt2e.qat.kept_switches import KeptSwitches
from torchquilt.spec.qspec import QuantizationSpec


@attrs.frozen
class Standing:
    """Facts about an observer point of a prepared model, which a training point replaces.

    Args:
        names: names of the edges and nodes.
        modules: paths of the modules that read or make what it quantizes.
    """

    names: tuple[str, ...]
    modules: tuple[str, ...]


class TrainingPoint(KeptSwitches, QuantizationPoint[Any]):
    """Base of all training points.

    Args:
        spec: what the tensor will be.
        standing: where it stands.
    """

    STATE_NAME = "switches"
    #: whether its scale is a parameter
    is_learned = False
    #: whether it stands at weights or other stored tensors
    is_constant = False

    def __init__(self, spec: Any, standing: Standing) -> None:
        super().__init__(spec, standing.names)
        self.standing = standing
        #: whether it follows the range of what it sees, in training mode
        self.observes = True
        #: whether it rounds at all
        self.quantizes = True

    def forward(self, tensor: Any, is_new: bool = True, around: ChannelFactor | None = None) -> Any:
        """Fake quantize a tensor.

        Args:
            tensor: what the integers are going to stand for. None, where there is no bias, stays None.
            is_new: False where all of its elements went through the same point before, and are rounded.
            around: a factor that is put in before, and taken out behind.
        """
        if tensor is None or (not is_new and self.quantizes and self._may_skip):
            return tensor
        # Activation checkpointing repeats a forward pass within a backward one.
        if self.training and self.observes and is_new and not is_in_backward():
            self.observe_with(tensor.detach(), around)
        if not self.quantizes:
            return tensor
        if around is not None:
            return self.trained_with(tensor, around)
        return self.trained(tensor) if self.training else self.evaluated(tensor)

    def observe_with(self, tensor: torch.Tensor, around: ChannelFactor | None) -> None:
        """Follow the range of a tensor, times a factor if there is one."""
        with torch.no_grad():
            self.observe(tensor if around is None else around.put_in(tensor))

    def trained_with(self, tensor: torch.Tensor, around: ChannelFactor) -> torch.Tensor:
        """The tensor, fake quantized with a factor in it that is taken out again."""
        return around.take_out(self.trained(around.put_in(tensor)))

    @property
    def _may_skip(self) -> bool:
        """Whether a tensor that is rounded already stays as it is.

        In evaluation an activation is rounded again, as after convert, where nothing of the values changes;
        but they lie in memory in another order then, and some operators return other bits for that.
        """
        return self.training or self.is_constant

    def observe(self, tensor: torch.Tensor) -> None:
        """Follow the range of a tensor; without gradients, and not again where it is only recomputed."""

    @abstractmethod
    def trained(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, fake quantized."""

    @abstractmethod
    def evaluated(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, as the converted model has it."""

    @staticmethod
    def says_learned(switches: torch.Tensor) -> bool:
        """Whether the switches in a state are those of a scale that is learned."""
        return bool(switches[2])

    def switches(self) -> tuple[bool, ...]:
        """Whether it observes, whether it quantizes, whether its scale is learned."""
        return self.observes, self.quantizes, self.is_learned

    def switch(self, switches: tuple[bool, ...]) -> str:
        """Take the first two, if the third is the same."""
        observes, quantizes, is_learned = switches
        if is_learned is not self.is_learned:
            here, there = ("learned", "followed") if self.is_learned else ("followed", "learned")
            return f"its range is {here} here, and was {there} there"
        self.allow(observes=observes, quantizes=quantizes)
        return ""

    def allow(self, *, observes: bool, quantizes: bool) -> None:
        """Set whether it observes, and whether it quantizes."""
        self.observes, self.quantizes = observes, quantizes


class ParameterPoint(TrainingPoint):
    """Base of points whose parameters do not depend on the tensor of this pass."""

    def __init__(self, spec: Any, standing: Standing) -> None:
        super().__init__(spec, standing)
        #: the parameters in evaluation mode, where convert is going to raise the scale for other operators
        self.settled: QParams | None = None

    @abstractmethod
    def qparams(self) -> QParams:
        """The parameters that were found last."""

    def evaluated(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, as the converted model has it."""
        return as_converted(tensor, self.settled_qparams(), self.spec, is_constant=self.is_constant)

    def settled_qparams(self) -> QParams:
        """The parameters after convert."""
        is_settled = self.settled is not None and not torch.compiler.is_compiling()
        return self.settled if self.settled and is_settled else self.qparams()


def training_points(model: torch.nn.Module) -> dict[str, TrainingPoint]:
    """The training points of a model, by their names; each once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, TrainingPoint)}


def range_of(tensor: torch.Tensor, spec: QuantizationSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest value that is data, for each set of parameters; inf and -inf if none is."""
    if not torch.compiler.is_compiling():
        seen = extremes_of_parts(tensor, spec)
        return seen.low, seen.high
    rows, shape = as_rows(tensor.float(), spec)
    is_ordinary = rows.abs() < sentinel_limit(tensor.dtype)
    low = torch.where(is_ordinary, rows, math.inf).amin(-1)
    return low.reshape(shape), torch.where(is_ordinary, rows, -math.inf).amax(-1).reshape(shape)


def any_zero_point(spec: QuantizationSpec, shape: tuple[int, ...]) -> torch.Tensor:
    """Zero points before any is known, in the dtype that the spec has them in."""
    return qparams_of_range(torch.zeros(shape), torch.ones(shape), spec).zero_point


def no_data(point: TrainingPoint) -> CalibrationError:
    """The error for an observer point whose range is needed and not known."""
    return CalibrationError(
        "No range is known of this tensor.",
        node=", ".join(point.names),
        expected="a step in training mode, or ranges_from a calibrated model",
        got="an observer point that saw no data",
        remedy="train at least one step before evaluating or converting",
    )
