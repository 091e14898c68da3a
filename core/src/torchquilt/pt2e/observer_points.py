"""The modules that stand in a prepared graph where a tensor is going to be quantized.

Each one returns its input unchanged. Only :class:`ObservedPoint` looks at the data; the others mark an edge
or node whose parameters come from elsewhere: from a constant, from each input, from the spec, or from other
points. One module stands at all edges and nodes of a group.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import torch

from torchquilt._internal.torch_private import FakeTensor
from torchquilt.errors import AnnotationError, CalibrationError
from torchquilt.observers import MinMaxObserver, Observer, QParams, qparams_of_range
from torchquilt.observers.qparams import as_rows
from torchquilt.pt2e.choices import ChosenConstant, ChosenRange
from torchquilt.spec.qspec import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    OwnSpec,
    QuantizationSpec,
)

_S = TypeVar("_S", bound=OwnSpec)


class QuantizationPoint(torch.nn.Module, Generic[_S]):
    """Base of all points.

    Args:
        spec: what the tensor will be.
        names: names of the edges and nodes in the graph where the point stands, for errors and listings.
    """

    def __init__(self, spec: _S, names: tuple[str, ...]) -> None:
        super().__init__()
        self.spec = spec
        self.names = names

    def forward(self, tensor: torch.Tensor, is_new: bool = True) -> torch.Tensor:
        """Return the tensor itself.

        Args:
            tensor: what is going to be quantized.
            is_new: False where all of its elements have been shown to the same point before, as those of
                another tensor of its group.
        """
        return tensor

    def extra_repr(self) -> str:
        """Text that ``print(model)`` shows of an observer point."""
        return f"{self.spec} at {', '.join(self.names)}"


class ObservedPoint(QuantizationPoint[QuantizationSpec]):
    """An activation whose parameters come from calibration data."""

    def __init__(self, spec: QuantizationSpec, observer: Observer, names: tuple[str, ...]) -> None:
        super().__init__(spec, names)
        self.observer = observer
        #: the range that it gets instead of the one that the observer finds
        self.chosen: ChosenRange | None = None

    def forward(self, tensor: torch.Tensor, is_new: bool = True) -> torch.Tensor:
        """Show the tensor to the observer, unless it was shown what is in it, and return it.

        Raises:
            CalibrationError: control flow traces its subgraph instead of running it, so there is no data.
        """
        if isinstance(tensor, FakeTensor):
            raise CalibrationError(
                "A subgraph of control flow is traced to be differentiated, so nothing can be observed.",
                node=", ".join(self.names),
                expected="a prepared model that is run without gradients",
                got="an input that requires a gradient",
                remedy="call it under torch.no_grad(), or use torchquilt.calibrate",
            )
        if is_new or self.observer.counts_repeats:
            self.observer.update(tensor)
        return tensor

    def get_extra_state(self) -> dict[str, Any]:
        """State of the observer and the chosen range, for ``state_dict()`` of the prepared model."""
        found = {"observer": self._kind(), "state": self.observer.state()}
        return found if self.chosen is None else {**found, "chosen": self.chosen.state()}

    def set_extra_state(self, state: Any) -> None:
        """Go on where the observer of another prepared model was: ``load_state_dict()``.

        Raises:
            CalibrationError: it was another kind of observer, or one for another spec.
        """
        if state["observer"] != self._kind():
            raise CalibrationError(
                "This state was seen by another observer.",
                node=", ".join(self.names),
                expected=self._kind(),
                got=state["observer"],
                remedy="load the state of a model that was prepared with the same quantizer and observers",
            )
        self.observer = type(self.observer).from_state(self.observer.spec, state["state"])
        self.chosen = ChosenRange.from_state(state.get("chosen"))

    def _kind(self) -> str:
        seen = self.observer
        return f"{type(seen).__qualname__} {seen.settings()} for {seen.spec}"

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The low and high end that are represented: those that were chosen, or those of the observer."""
        return (self.chosen.low, self.chosen.high) if self.chosen is not None else self.observer.range()

    def qparams(self) -> QParams:
        """The parameters for the range that was chosen, or for what was observed.

        Raises:
            CalibrationError: nothing was; names the edges and nodes.
        """
        try:
            return self.observer.qparams() if self.chosen is None else self.chosen.qparams(self.spec)
        except CalibrationError as error:
            raise CalibrationError(
                error.problem,
                node=", ".join(self.names),
                expected="at least one value before convert_pt2e",
                got=f"{self.observer.count} values",
                remedy="run calibration batches through the prepared model that reach this tensor",
            ) from error


def observed_points(model: torch.nn.Module) -> dict[str, ObservedPoint]:
    """The points of a prepared model that look at the data, by their names; each once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ObservedPoint)}


class ConstantPoint(QuantizationPoint[QuantizationSpec]):
    """A weight or another constant: its parameters are found once, from its value, at convert.

    Args:
        spec: what the tensor will be.
        names: names of the edges and nodes in the graph where the point stands.
        chosen: how it is quantized, instead of to the nearest integers of its min-max range.
    """

    def __init__(
        self, spec: QuantizationSpec, names: tuple[str, ...], chosen: ChosenConstant | None = None
    ) -> None:
        super().__init__(spec, names)
        self.chosen = chosen

    # The ways of torch for a state of one's own write it always; here it is there where there is a choice.
    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self.chosen is not None:
            destination[f"{prefix}_extra_state"] = self.chosen.state()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        self.chosen = ChosenConstant.from_state(state_dict.get(f"{prefix}_extra_state"))

    def qparams_for(self, values: list[torch.Tensor]) -> QParams:
        """The parameters for the constants at the edges and nodes of the point: chosen ones, or min-max.

        Constants without elements have those of zeros.

        Raises:
            CalibrationError: a value does not have the shape that the spec needs, or no finite element.
        """
        if self.chosen is not None:
            return self.chosen.qparams
        observer = MinMaxObserver(self.spec)
        try:
            if all(value.numel() == 0 for value in values):
                zeros = torch.zeros(as_rows(values[0], self.spec)[1])
                return qparams_of_range(zeros, zeros, self.spec)
            for value in values:
                observer.update(value)
            return observer.qparams()
        except (CalibrationError, ValueError) as error:
            shapes = ", ".join(str(tuple(value.shape)) for value in values)
            cause = error.problem if isinstance(error, CalibrationError) else error
            raise CalibrationError(
                "This constant cannot be quantized as asked.",
                node=", ".join(self.names),
                expected=str(self.spec),
                got=f"shape {shapes}: {cause}",
                remedy="leave it in float, or choose a granularity that fits its shape",
            ) from error


class DynamicPoint(QuantizationPoint[QuantizationSpec]):
    """An activation whose parameters are computed from each input when the model runs."""


class FixedPoint(QuantizationPoint[FixedQParamsQuantizationSpec]):
    """A tensor whose parameters the spec says."""

    def qparams(self) -> QParams:
        """The parameters of the spec."""
        return QParams(torch.tensor(self.spec.scale), torch.tensor(self.spec.zero_point))


class DerivedPoint(QuantizationPoint[QuantizationSpec]):
    """A tensor whose parameters are computed from those of other points.

    It does not keep the spec that was annotated, which names nodes of one graph, but its integers.
    """

    def __init__(self, spec: DerivedQuantizationSpec, names: tuple[str, ...]) -> None:
        integers = QuantizationSpec(
            spec.dtype, spec.quant_min, spec.quant_max, spec.granularity, ch_axis=spec.ch_axis
        )
        super().__init__(integers, names)
        self.derive_qparams_fn = spec.derive_qparams_fn
        #: names of the points that it is derived from, in order; prepare fills them in
        self.sources: tuple[str, ...] = ()

    def qparams_from(self, sources: list[QParams]) -> QParams:
        """The parameters, from those of the sources.

        Raises:
            AnnotationError: ``derive_qparams_fn`` failed, or returned something else.
        """
        pairs = [(found.scale, found.zero_point) for found in sources]
        shape = () if self.spec.ch_axis is None else (-1,)
        try:
            scale, zero_point = self.derive_qparams_fn(pairs)
            return QParams(scale.reshape(shape), zero_point.reshape(shape))
        except Exception as error:  # it is the user's own
            wanted = "0-d or of one element" if self.spec.ch_axis is None else "one element for each channel"
            raise AnnotationError(
                "The function that derives these parameters failed.",
                node=", ".join(self.names),
                expected=f"derive_qparams_fn returns (scale, zero_point), two tensors, {wanted}",
                got=f"{type(error).__name__}: {error}",
                remedy="see the cause above",
            ) from error

    def check_fits(self, found: QParams, value: object) -> None:
        """Refuse parameters whose number is not that of the channels of the tensor they are for.

        Args:
            found: what :meth:`qparams_from` returned.
            value: a tensor, or fake tensor, of the shape that is going to be quantized.

        Raises:
            AnnotationError: there are more or fewer of them.
        """
        axis = self.spec.ch_axis
        if axis is None or not isinstance(value, torch.Tensor):
            return
        channels = value.shape[axis]
        if not found.scale.numel() == found.zero_point.numel() == channels:
            raise AnnotationError(
                "The derived parameters do not fit the tensor.",
                node=", ".join(self.names),
                expected=f"{channels} scales and zero points, one for each element of axis {axis}",
                got=f"{found.scale.numel()} scales and {found.zero_point.numel()} zero points",
                remedy="let derive_qparams_fn return one for each channel, or leave ch_axis out of the spec",
            )
