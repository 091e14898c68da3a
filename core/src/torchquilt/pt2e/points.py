"""The modules that stand in a prepared graph where a tensor is going to be quantized.

Each one returns its input unchanged. Only :class:`ObservedPoint` looks at the data; the others mark a
place whose parameters come from elsewhere: from a constant, from each input, from the spec, or from
other points. One module stands at all places of a group.
"""

from __future__ import annotations

import torch

from torchquilt.errors import CalibrationError
from torchquilt.observers import MinMaxObserver, Observer, QParams
from torchquilt.spec import DerivedQuantizationSpec, FixedQParamsQuantizationSpec, QuantizationSpec


class QuantizationPoint(torch.nn.Module):
    """Base: a place in the graph, its spec, and the names of the places it stands at."""

    def __init__(self, places: tuple[str, ...]) -> None:
        super().__init__()
        self.places = places

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def qparams(self) -> QParams:
        """The parameters that were found.

        Raises:
            CalibrationError: they cannot be known yet; names the place.
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{getattr(self, 'spec', '')} at {', '.join(self.places)}"


class ObservedPoint(QuantizationPoint):
    """An activation whose parameters come from calibration data."""

    def __init__(self, spec: QuantizationSpec, observer: Observer, places: tuple[str, ...]) -> None:
        super().__init__(places)
        self.spec = spec
        self.observer = observer

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        self.observer.update(tensor)
        return tensor

    def qparams(self) -> QParams:
        try:
            return self.observer.qparams()
        except CalibrationError as error:
            raise CalibrationError(
                error.problem,
                node=", ".join(self.places),
                expected="at least one value before convert_pt2e",
                got=f"{self.observer.count} values",
                remedy="run calibration batches through the prepared model that reach this tensor",
            ) from error


class ConstantPoint(QuantizationPoint):
    """A weight or another constant: its parameters are found once, from its value, at convert."""

    def __init__(self, spec: QuantizationSpec, places: tuple[str, ...]) -> None:
        super().__init__(places)
        self.spec = spec

    def qparams_for(self, *values: torch.Tensor) -> QParams:
        """The parameters for these values, min-max."""
        observer = MinMaxObserver(self.spec)
        try:
            for value in values:
                observer.update(value)
            return observer.qparams()
        except (CalibrationError, ValueError) as error:
            raise CalibrationError(
                "This constant cannot be quantized as asked.",
                node=", ".join(self.places),
                expected=str(self.spec),
                got=f"shape {', '.join(str(tuple(value.shape)) for value in values)}: {error}",
                remedy="leave it in float, or choose a granularity that fits its shape",
            ) from error


class DynamicPoint(QuantizationPoint):
    """An activation whose parameters are computed from each input when the model runs."""

    def __init__(self, spec: QuantizationSpec, places: tuple[str, ...]) -> None:
        super().__init__(places)
        self.spec = spec


class FixedPoint(QuantizationPoint):
    """A tensor whose parameters the spec says."""

    def __init__(self, spec: FixedQParamsQuantizationSpec, places: tuple[str, ...]) -> None:
        super().__init__(places)
        self.spec = spec

    def qparams(self) -> QParams:
        return QParams(torch.tensor(self.spec.scale), torch.tensor(self.spec.zero_point))


class DerivedPoint(QuantizationPoint):
    """A tensor whose parameters are computed from those of other points."""

    def __init__(self, spec: DerivedQuantizationSpec, places: tuple[str, ...]) -> None:
        super().__init__(places)
        self.spec = spec
        self.sources: tuple[str, ...] = ()  #: names of the points it is derived from, set by prepare
