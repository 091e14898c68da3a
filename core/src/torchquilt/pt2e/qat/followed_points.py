"""Points whose ranges follow what they see: those of activations and of weights."""

from __future__ import annotations

import math

import torch

from torchquilt._internal.torch_private import is_in_backward
from torchquilt.observers import QParams, qparams_of_range
from torchquilt.observers.extremes import is_data, represented
from torchquilt.observers.moving_average import moved
from torchquilt.pt2e.qat.fake_quantize import (
    ChannelFactor,
    fake_quantize,
    fake_quantize_with_factor,
)
from torchquilt.pt2e.qat.points import (
    ParameterPoint,
    Standing,
    any_zero_point,
    no_data,
    range_of,
)
from torchquilt.spec.qspec import QuantizationSpec


class _StoredParameters(ParameterPoint):
    """A point with parameters of its own, which are found in training and stored."""

    scale: torch.Tensor
    zero_point: torch.Tensor

    def register_stored(self, shape: tuple[int, ...]) -> None:
        """Make room for parameters of a shape."""
        self.register_buffer("scale", torch.zeros(shape))
        self.register_buffer("zero_point", any_zero_point(self.spec, shape))

    def store(self, found: QParams) -> None:
        """Take other parameters."""
        self.scale.copy_(found.scale)
        self.zero_point.copy_(found.zero_point)

    def stored(self) -> QParams:
        """The parameters that were found last."""
        return QParams(self.scale, self.zero_point)


class ActivationPoint(_StoredParameters):
    """An activation: its range is a moving average of that of each batch.

    Several tensors that share parameters are one batch: the range moves towards what holds all that the point
    saw in one forward pass, in whatever order.

    Args:
        spec: what the tensor will be.
        standing: where it stands.
        shape: of its scale.
        share: how far each batch moves the average.
    """

    low: torch.Tensor
    high: torch.Tensor

    def __init__(
        self, spec: QuantizationSpec, standing: Standing, shape: tuple[int, ...], share: float
    ) -> None:
        super().__init__(spec, standing)
        self.share = share
        self.register_stored(shape)
        self.register_buffer("low", torch.full(shape, math.inf))
        self.register_buffer("high", torch.full(shape, -math.inf))
        self._pass = _Pass()

    @property
    def has_data(self) -> bool:
        """Whether any range is known."""
        return bool((self.low <= self.high).any())

    def start_from(self, low: torch.Tensor, high: torch.Tensor, found: QParams) -> None:
        """Begin with a range that is known, and the parameters for it."""
        self.low.copy_(low)
        self.high.copy_(high)
        self.store(found)

    def observe(self, tensor: torch.Tensor) -> None:
        """Move the average by a share of the way towards the range of a batch."""
        if not is_data(tensor):
            return
        with torch.no_grad():
            seen = range_of(tensor, self.spec)
            low, high = self._pass.together(seen, (self.low, self.high))
            before_low, before_high = self._pass.before
            self.low.copy_(moved(before_low, low, self.share))
            self.high.copy_(moved(before_high, high, self.share))
            self.settle()

    def end_of_pass(self) -> None:
        """Note that a forward pass is over: what is seen next is another batch."""
        self._pass = _Pass(used=self._pass.used)

    def settle(self) -> None:
        """Compute the parameters from the range."""
        self.store(qparams_of_range(*represented(self.low, self.high, self.spec), self.spec))

    def trained(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, fake quantized; as it is as long as no range is known."""
        if torch.compiler.is_compiling():
            return fake_quantize(tensor, self.stored(), self.spec)
        if not self.has_data:
            return tensor
        return fake_quantize(tensor, self._pass.parameters(self.stored()), self.spec)

    def qparams(self) -> QParams:
        """The parameters that were used last.

        Raises:
            CalibrationError: the point saw no data.
        """
        if not self.has_data:
            raise no_data(self)
        return self.stored()


class _Pass:
    """The ranges that a point saw, and the parameters that it used, in one forward pass.

    Args:
        used: the parameters of each call of the pass before, until this one begins.
    """

    def __init__(self, used: list[QParams] | None = None) -> None:
        self.used = used or []
        self._is_begun = False
        self._repeated = 0
        self._seen: tuple[torch.Tensor, torch.Tensor] | None = None
        self.before: tuple[torch.Tensor, torch.Tensor]

    def together(
        self, seen: tuple[torch.Tensor, torch.Tensor], now: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The range of all that was seen in this pass."""
        if self._seen is None:
            self.before = (now[0].clone(), now[1].clone())
            self._seen = seen
        else:
            self._seen = torch.minimum(self._seen[0], seen[0]), torch.maximum(self._seen[1], seen[1])
        return self._seen

    def parameters(self, stored: QParams) -> QParams:
        """The parameters of a call: those of now, or those of the first time where the pass is repeated."""
        if is_in_backward():
            found = self.used[self._repeated % len(self.used)] if self.used else stored
            self._repeated += 1
            return found
        if not self._is_begun:
            self.used, self._is_begun = [], True
        self.used.append(QParams(stored.scale.clone(), stored.zero_point.clone()))
        return self.used[-1]


class WeightPoint(_StoredParameters):
    """A weight or another constant: its range is that of its value, as long as it is not frozen.

    Args:
        spec: what the tensor will be.
        standing: where it stands.
        shape: of its scale.
    """

    is_constant = True

    def __init__(self, spec: QuantizationSpec, standing: Standing, shape: tuple[int, ...]) -> None:
        super().__init__(spec, standing)
        self.register_stored(shape)

    def observe_with(self, tensor: torch.Tensor, around: ChannelFactor | None) -> None:
        """Find the parameters of the value; those for what is no number are left as they were."""
        factor = None
        if around is not None and around.is_of_rows(tensor, self.spec):
            factor = around.factor
        elif around is not None:
            tensor = around.put_in(tensor)
        with torch.no_grad():
            found = self._found(tensor, factor)
            self.store(
                QParams(torch.where(found.scale.isfinite(), found.scale, self.scale), found.zero_point)
            )

    def _found(self, tensor: torch.Tensor, factor: torch.Tensor | None = None) -> QParams:
        """The parameters of a value, or of its rows times a factor of each: rounding keeps the order."""
        if tensor.numel() == 0:
            zeros = torch.zeros_like(self.scale)
            return qparams_of_range(zeros, zeros, self.spec)
        low, high = range_of(tensor, self.spec)
        if factor is not None:
            low, high = torch.minimum(low * factor, high * factor), torch.maximum(low * factor, high * factor)
        return qparams_of_range(*represented(low, high, self.spec), self.spec)

    def trained(self, tensor: torch.Tensor) -> torch.Tensor:
        """The value, fake quantized."""
        return fake_quantize(tensor, self.stored(), self.spec, clips=self._clips)

    def trained_with(self, tensor: torch.Tensor, around: ChannelFactor) -> torch.Tensor:
        """The value, fake quantized with a factor in it that is taken out again."""
        return fake_quantize_with_factor(tensor, self.stored(), self.spec, around, clips=self._clips)

    @property
    def _clips(self) -> bool:
        """False where nothing lies outside of the range, which is that of the value itself.

        A range with fewer integers on one side of zero cuts off the other.
        """
        spec = self.spec
        is_whole = spec.symmetric and spec.zero_point - spec.quant_min == spec.quant_max - spec.zero_point
        return not (is_whole and self.observes)

    def evaluated(self, tensor: torch.Tensor) -> torch.Tensor:
        """The value, as the converted model has it."""
        if self.observes:
            with torch.no_grad():
                self.store(self._found(tensor.detach()))
        return super().evaluated(tensor)

    def qparams(self) -> QParams:
        """The parameters that were used last."""
        return self.stored()
