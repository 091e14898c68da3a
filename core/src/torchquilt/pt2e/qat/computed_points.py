"""Points that look for no range: what a spec says, each input for itself, or what others have."""

from __future__ import annotations

import torch

from torchquilt.graph.qdq import choosing_call, operators_of
from torchquilt.observers import QParams
from torchquilt.pt2e.observer_points import DerivedPoint
from torchquilt.pt2e.qat.fake_quantize import (
    IntegerSpec,
    as_converted,
    dequantized,
    fake_quantize,
    gradient_through,
)
from torchquilt.pt2e.qat.points import (
    ParameterPoint,
    Standing,
    TrainingPoint,
)


class KnownPoint(ParameterPoint):
    """A tensor whose parameters the spec says."""

    def __init__(self, spec: IntegerSpec, found: QParams, standing: Standing) -> None:
        super().__init__(spec, standing)
        self._scale, self._zero_point = float(found.scale), int(found.zero_point)

    def trained(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, fake quantized."""
        return fake_quantize(tensor, self.qparams(), self.spec)

    def qparams(self) -> QParams:
        """The parameters of the spec."""
        return QParams(torch.tensor(self._scale), torch.tensor(self._zero_point))


class DynamicTrainingPoint(TrainingPoint):
    """An activation whose parameters are computed from each input."""

    _may_skip = False

    def trained(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, as the converted model has it; nothing lies outside of a range of its own."""
        return self.evaluated(tensor)

    def evaluated(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, as the converted model has it."""
        with torch.no_grad():
            value = self._converted(tensor.detach())
        return gradient_through(tensor, value)

    def _converted(self, tensor: torch.Tensor) -> torch.Tensor:
        choose, asked = choosing_call(self.spec)
        operators = operators_of(self.spec, choose(tensor.float(), *asked))
        return dequantized(operators.quantize(tensor, *operators.arguments), operators, tensor.dtype)


class DerivedTrainingPoint(ParameterPoint):
    """A tensor whose parameters are computed from those of other points, as those are now."""

    is_constant = True

    def __init__(self, point: DerivedPoint, standing: Standing) -> None:
        super().__init__(point.spec, standing)
        self._derived = (point,)  # in a tuple, so that it is no submodule
        #: the points that it is derived from; no submodules, since they have a name in the model already
        self.sources: tuple[ParameterPoint, ...] = ()

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of those points."""
        return self._derived[0].sources

    @property
    def calibrated(self) -> DerivedPoint:
        """The point of a calibrated model."""
        return self._derived[0]

    def link(self, sources: list[ParameterPoint]) -> None:
        """Say which points they are."""
        self.sources = tuple(sources)

    def trained(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, fake quantized."""
        return fake_quantize(tensor, self._fitting(tensor, self.qparams()), self.spec)

    def evaluated(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, as the converted model has it."""
        found = self._fitting(tensor, self.settled_qparams())
        return as_converted(tensor, found, self.spec, is_constant=True)

    def _fitting(self, tensor: torch.Tensor, found: QParams) -> QParams:
        self._derived[0].check_fits(found, tensor)
        return found

    def qparams(self) -> QParams:
        """The parameters, from those of the sources."""
        with torch.no_grad():
            return self._derived[0].qparams_from([source.qparams() for source in self.sources])
