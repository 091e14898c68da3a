"""The modules that fake quantize in a model that is trained, one at each point of a prepared model.

In training mode a point fake quantizes, and follows the range of what it sees; in evaluation mode it computes
the bits that convert writes, and follows nothing. What it needs for that is in its buffers, so it is part of
``state_dict()``, moves with the model, and is what ``DistributedDataParallel`` broadcasts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch

from torchquilt._internal.torch_private import active_ddp, is_in_backward
from torchquilt.errors import CalibrationError
from torchquilt.graph.qdq import QDQOperators, choosing_operator
from torchquilt.observers import QParams, qparams_of_range
from torchquilt.observers.extremes import extremes_of_parts, is_data, sentinel_limit
from torchquilt.observers.qparams import as_rows
from torchquilt.pt2e.observer_points import DerivedPoint, QuantizationPoint
from torchquilt.pt2e.qat.fake_quantize import (
    ChannelFactor,
    NumberSpec,
    as_converted,
    dequantized,
    fake_quantize,
    fake_quantize_with_factor,
    gradient_through,
    learned_fake_quantize,
)
from torchquilt.spec.qspec import Granularity, QuantizationSpec

#: Name in ``state_dict()`` of what a point is allowed to do.
SWITCHES = "switches"


@attrs.frozen
class Standing:
    """Facts about the point of a prepared model that a point of training replaces.

    Args:
        names: names of the edges and nodes.
        modules: paths of the modules that read or make what it quantizes.
    """

    names: tuple[str, ...]
    modules: tuple[str, ...]


class TrainingPoint(QuantizationPoint[Any]):
    """Base of all points of training.

    Args:
        spec: what the tensor will be.
        standing: where it stands.
    """

    def __init__(self, spec: Any, standing: Standing) -> None:
        super().__init__(spec, standing.names)
        self.standing = standing
        #: whether it follows the range of what it sees, in training mode
        self.observes = True
        #: whether it rounds at all
        self.quantizes = True
        #: the parameters in evaluation mode, where convert is going to raise the scale for other operators
        self.settled: QParams | None = None

    def forward(self, tensor: Any, is_new: bool = True, around: ChannelFactor | None = None) -> Any:
        """Fake quantize a tensor.

        Args:
            tensor: what the integers are going to stand for. None, where there is no bias, stays None.
            is_new: False where all of its elements went through the same point before, and are rounded.
            around: a factor that is put in before, and taken out behind.
        """
        if tensor is None or (not is_new and self.quantizes and self._may_skip):
            return tensor
        if self.training and self.observes and is_new and not _is_repeated():
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

    def trained(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, fake quantized."""
        raise NotImplementedError

    def evaluated(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, as the converted model has it."""
        return as_converted(tensor, self.settled_qparams(), self.spec)

    def settled_qparams(self) -> QParams:
        """The parameters after convert."""
        is_settled = self.settled is not None and not torch.compiler.is_compiling()
        return self.settled if self.settled and is_settled else self.qparams()

    def qparams(self) -> QParams:
        """The parameters as they were found last."""
        raise NotImplementedError

    #: whether its scale is a parameter
    is_learned = False
    #: whether it stands at weights or other stored tensors
    is_constant = False

    @staticmethod
    def says_learned(switches: torch.Tensor) -> bool:
        """Whether the switches in a state are those of a scale that is learned."""
        return bool(switches[2])

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        switches = [self.observes, self.quantizes, self.is_learned]
        destination[prefix + SWITCHES] = torch.tensor(switches, dtype=torch.uint8)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *others)
        _, is_strict, missing, unexpected, errors = others
        name = prefix + SWITCHES
        if name not in state_dict:
            if is_strict:
                missing.append(name)
            return
        if name in unexpected:
            unexpected.remove(name)
        observes, quantizes, is_learned = map(bool, state_dict[name].tolist())
        if is_learned is not self.is_learned:
            here, there = ("learned", "followed") if self.is_learned else ("followed", "learned")
            errors.append(f"{prefix[:-1]}: its range is {here} here, and was {there} there")
            return
        self.allow(observes=observes, quantizes=quantizes)

    def allow(self, *, observes: bool, quantizes: bool) -> None:
        """Say whether it follows what it sees, and whether it rounds."""
        self.observes, self.quantizes = observes, quantizes


def _is_repeated() -> bool:
    """Whether the forward pass runs within a backward pass, as activation checkpointing repeats it."""
    return not torch.compiler.is_compiling() and is_in_backward()


def training_points(model: torch.nn.Module) -> dict[str, TrainingPoint]:
    """The points of a model that is trained, by their names; each once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, TrainingPoint)}


def _range_of(tensor: torch.Tensor, spec: QuantizationSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest value that is data, for each set of parameters; inf and -inf where nothing is."""
    if not torch.compiler.is_compiling():
        seen = extremes_of_parts(tensor, spec)
        return seen.low, seen.high
    rows, shape = as_rows(tensor.float(), spec)
    is_ordinary = rows.abs() < sentinel_limit(tensor.dtype)
    low = torch.where(is_ordinary, rows, math.inf).amin(-1)
    return low.reshape(shape), torch.where(is_ordinary, rows, -math.inf).amax(-1).reshape(shape)


def _any_zero_point(spec: QuantizationSpec, shape: tuple[int, ...]) -> torch.Tensor:
    return qparams_of_range(torch.zeros(shape), torch.ones(shape), spec).zero_point


class _StoredParameters(TrainingPoint):
    """A point with parameters of its own, which are found in training and stored."""

    scale: torch.Tensor
    zero_point: torch.Tensor

    def register_stored(self, shape: tuple[int, ...]) -> None:
        """Make room for parameters of a shape."""
        self.register_buffer("scale", torch.zeros(shape))
        self.register_buffer("zero_point", _any_zero_point(self.spec, shape))

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
            seen = _range_of(tensor, self.spec)
            low, high = self._pass.together(seen, (self.low, self.high))
            before_low, before_high = self._pass.before
            self.low.copy_(_moved(before_low, low, self.share))
            self.high.copy_(_moved(before_high, high, self.share))
            self.settle()

    def end_of_pass(self) -> None:
        """Note that a forward pass is over: what is seen next is another batch."""
        self._pass = _Pass(used=self._pass.used)

    def settle(self) -> None:
        """Compute the parameters from the range."""
        is_empty = self.low > self.high
        low, high = self.low.masked_fill(is_empty, 0.0), self.high.masked_fill(is_empty, 0.0)
        self.store(qparams_of_range(low, high, self.spec))

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
            raise _no_data(self)
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
            found = self.used[self._repeated] if self._repeated < len(self.used) else stored
            self._repeated += 1
            return found
        if not self._is_begun:
            self.used, self._is_begun = [], True
        self.used.append(QParams(stored.scale.clone(), stored.zero_point.clone()))
        return self.used[-1]


def _no_data(point: TrainingPoint) -> CalibrationError:
    return CalibrationError(
        "No range is known of this tensor.",
        node=", ".join(point.names),
        expected="a step in training mode, or ranges_from a calibrated model",
        got="a point that saw no data",
        remedy="train at least one step before evaluating or converting",
    )


def _moved(average: torch.Tensor, seen: torch.Tensor, share: float) -> torch.Tensor:
    moved = torch.where(average.isinf(), seen, average + share * (seen - average))
    return torch.where(seen.isinf(), average, moved)


class WeightPoint(_StoredParameters):
    """A weight or another constant: its range is that of its value, as long as it is not frozen.

    Args:
        spec: what the tensor will be.
        standing: where it stands.
        shape: of its scale.
    """

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
        low, high = _range_of(tensor, self.spec)
        if factor is not None:
            low, high = torch.minimum(low * factor, high * factor), torch.maximum(low * factor, high * factor)
        is_empty = low > high
        low, high = low.masked_fill(is_empty, 0.0), high.masked_fill(is_empty, 0.0)
        if self.spec.uniform:
            low, high = low.min().expand_as(low), high.max().expand_as(high)
        return qparams_of_range(low, high, self.spec)

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
        found = self.qparams_for(tensor)
        with torch.no_grad():
            self.store(found)  # for what is derived from it
        found = found if self.settled is None else self.settled
        return as_converted(tensor, found, self.spec, is_constant=True)

    def qparams_for(self, tensor: torch.Tensor) -> QParams:
        """The parameters for a value: its own, or those that are frozen."""
        with torch.no_grad():
            return self._found(tensor.detach()) if self.observes else self.stored()

    def qparams(self) -> QParams:
        """The parameters that were used last."""
        return self.stored()


class LearnedPoint(TrainingPoint):
    """A tensor whose scale is a parameter of the model, and learned with it.

    Args:
        spec: what the tensor will be.
        standing: where it stands.
        shape: of its scale.
        is_constant: whether it is a weight.
    """

    is_learned = True
    zero_point: torch.Tensor

    def __init__(
        self, spec: QuantizationSpec, standing: Standing, shape: tuple[int, ...], *, is_constant: bool
    ) -> None:
        super().__init__(spec, standing)
        self.is_constant = is_constant
        self._is_known = False
        #: as it is learned; 0 as long as nothing is known
        self.scale = torch.nn.Parameter(torch.zeros(shape))
        self.register_buffer("zero_point", _any_zero_point(spec, shape))

    def allow(self, *, observes: bool, quantizes: bool) -> None:
        """Say whether its scale is learned, and whether it rounds."""
        super().allow(observes=observes, quantizes=quantizes)
        self.scale.requires_grad_(observes)

    def start_from(self, found: QParams) -> None:
        """Begin with parameters that are known."""
        with torch.no_grad():
            self.scale.copy_(found.scale)
            self.zero_point.copy_(found.zero_point)
        self._is_known = True

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *others)
        self._is_known = False  # until the scale is looked at

    @property
    def has_data(self) -> bool:
        """Whether a scale is known. Compiled code depends on what Python knew when it was compiled."""
        if not self._is_known and not torch.compiler.is_compiling():
            self._is_known = bool((self.scale != 0).any())
        return self._is_known

    def observe(self, tensor: torch.Tensor) -> None:
        """Begin with the range of the first tensor, where no other is known."""
        if not self.has_data:
            self._begin(tensor, is_compiled=torch.compiler.is_compiling())

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _begin(self, tensor: torch.Tensor, *, is_compiled: bool) -> None:
        if is_compiled:
            raise CalibrationError(
                "Compiled code cannot find the scale that learning begins with.",
                node=", ".join(self.names),
                expected="scales that are known before torch.compile",
                got="a point that saw no data",
                remedy="pass ranges_from to prepare_qat_pt2e, or run a batch in training mode before",
            )
        nothing = torch.full_like(self.scale.detach(), math.inf)
        low, high = _range_of(tensor, self.spec) if is_data(tensor) else (nothing, -nothing)
        low, high = _range_on_all_ranks(low, high)
        if bool((low <= high).all()):
            self.start_from(qparams_of_range(low, high, self.spec))

    def trained(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, fake quantized, with a gradient for the scale."""
        if not self.has_data:
            return tensor
        found = QParams(self._positive(), self.zero_point)
        if self.scale.requires_grad:
            return learned_fake_quantize(tensor, found, self.spec, is_constant=self.is_constant)
        return fake_quantize(tensor, found, self.spec)

    def _positive(self) -> torch.Tensor:
        """The scale, no smaller than the spec allows; gradients go through where they make it larger."""
        return self.scale + (self.scale.detach().clamp(min=self.spec.eps) - self.scale).detach()

    def evaluated(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, as the converted model has it."""
        return as_converted(tensor, self.settled_qparams(), self.spec, is_constant=self.is_constant)

    def qparams(self) -> QParams:
        """The parameters as they are learned.

        Raises:
            CalibrationError: the point saw no data.
        """
        if not self.has_data:
            raise _no_data(self)
        return QParams(self.scale.detach().clamp(min=self.spec.eps), self.zero_point)


def _range_on_all_ranks(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The range of what any rank saw, where ``DistributedDataParallel`` runs the model on several."""
    parallel = active_ddp()
    if parallel is None:
        return low, high
    import torch.distributed as dist

    ends = torch.stack([low, -high])
    dist.all_reduce(ends, dist.ReduceOp.MIN, group=parallel.process_group)
    return ends[0], -ends[1]


class KnownPoint(TrainingPoint):
    """A tensor whose parameters the spec says."""

    def __init__(self, spec: NumberSpec, found: QParams, standing: Standing) -> None:
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
        spec = self.spec
        is_per_token = spec.granularity is Granularity.PER_TOKEN
        asked = (spec.dtype,) if is_per_token else (spec.quant_min, spec.quant_max, spec.eps, spec.dtype)
        choose = choosing_operator(spec.granularity, symmetric=spec.symmetric)
        found = choose(tensor.float(), *asked)
        integers = (spec.quant_min, spec.quant_max, spec.dtype)
        operators = QDQOperators.of(spec.granularity, found, integers)
        return dequantized(operators.quantize(tensor, *operators.arguments), operators, tensor.dtype)


class DerivedTrainingPoint(TrainingPoint):
    """A tensor whose parameters are computed from those of other points, as those are now."""

    is_constant = True

    def __init__(self, point: DerivedPoint, standing: Standing) -> None:
        super().__init__(point.spec, standing)
        self._derived = (point,)  # in a tuple, so that it is no submodule
        #: the points that it is derived from; no submodules, since they have a name in the model already
        self.sources: tuple[TrainingPoint, ...] = ()

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of those points."""
        return self._derived[0].sources

    @property
    def calibrated(self) -> DerivedPoint:
        """The point of a calibrated model."""
        return self._derived[0]

    def link(self, sources: list[TrainingPoint]) -> None:
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
