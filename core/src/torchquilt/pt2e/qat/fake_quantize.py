"""Fake quantize: the values that integers stand for, in float, with gradients.

The gradient goes straight through the rounding, and is zero where a value lies outside of the range
(Jacob et al. 2017, arXiv:1712.05877). In training the values are computed in a few passes over memory.
In evaluation they are computed by the operators that convert writes, and so are the same bits.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import torch

from torchquilt.graph.batch_norm_folding import Fold
from torchquilt.graph.qdq import QDQOperators, operators_of
from torchquilt.observers import QParams
from torchquilt.pt2e.integer_constants import integers_of
from torchquilt.spec.qspec import (
    FixedQParamsQuantizationSpec,
    Granularity,
    QuantizationSpec,
    ZeroPointDomain,
)

#: A spec that says what the integers are, and names no node.
IntegerSpec: TypeAlias = QuantizationSpec | FixedQParamsQuantizationSpec


def fake_quantize(
    tensor: torch.Tensor, found: QParams, spec: IntegerSpec, *, clips: bool = True
) -> torch.Tensor:
    """Round a tensor to what its integers stand for, for training.

    Args:
        tensor: floats, of any shape that fits the granularity.
        found: scale and zero point.
        spec: what the integers are.
        clips: False where no value lies outside of the range, which spares the backward pass a look.

    Returns:
        A tensor of the shape and dtype of ``tensor``.
    """
    if torch.compiler.is_compiling() or not tensor.is_cpu:
        return _traceable(tensor, found, spec)
    return _apply(_FakeQuantize, tensor, found.scale, found.zero_point, spec, clips)


class ChannelFactor(NamedTuple):
    """The factor of each output channel that a weight is rounded with, and that is taken out again behind.

    Args:
        fold: how it is multiplied to a weight.
        factor: one number for each output channel, none of them 0.
    """

    fold: Fold
    factor: torch.Tensor

    def put_in(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight times the factor."""
        return self.fold.weight(weight, self.factor)

    def take_out(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight divided by the factor."""
        return self.fold.by_channel(weight, (1.0 / self.factor).to(weight.dtype))

    def is_of_rows(self, weight: torch.Tensor, spec: IntegerSpec) -> bool:
        """Whether each row of a weight has one factor and one scale, symmetric, all in float32."""
        is_by_row = spec.granularity is Granularity.PER_AXIS and spec.ch_axis == 0
        is_symmetric = isinstance(spec, QuantizationSpec) and spec.symmetric and spec.zero_point == 0
        is_float32 = weight.dtype == self.factor.dtype == torch.float32
        return is_by_row and is_symmetric and is_float32 and not self.fold.transposed_groups


def fake_quantize_with_factor(
    weight: torch.Tensor, found: QParams, spec: IntegerSpec, around: ChannelFactor, *, clips: bool = True
) -> torch.Tensor:
    """Put a factor in, round as :func:`fake_quantize` does, and take the factor out again.

    A weight may be as large as all activations. So where this can be done row by row, one tensor of its size
    is made, and no other kept for the backward pass.
    """
    if torch.compiler.is_compiling() or not weight.is_cpu or not around.is_of_rows(weight, spec):
        return around.take_out(fake_quantize(around.put_in(weight), found, spec, clips=clips))
    return _apply(_FakeQuantizeRows, weight, around.factor, found.scale, spec, clips)


def as_converted(
    tensor: torch.Tensor, found: QParams, spec: IntegerSpec, *, is_constant: bool = False
) -> torch.Tensor:
    """Quantize and dequantize with the operators that convert writes, bit for bit.

    Args:
        tensor: as for :func:`fake_quantize`.
        found: scale and zero point.
        spec: what the integers are.
        is_constant: whether it is a weight, whose integers convert computes beforehand.
    """
    return _apply(_AsConverted, tensor, found.scale, found.zero_point, spec, is_constant)


def gradient_through(tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Another value for a tensor, with the gradient of the tensor.

    Args:
        tensor: where the gradient goes.
        value: the value; it has no gradient.
    """
    if torch.compiler.is_compiling():
        return value + (tensor - tensor.detach())
    return _apply(_Through, tensor, value)


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> torch.Tensor:
    result: torch.Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> Any:
        return gradient, None


def learned_fake_quantize(
    tensor: torch.Tensor, found: QParams, spec: IntegerSpec, *, is_constant: bool = False
) -> torch.Tensor:
    """As :func:`fake_quantize`, with a gradient for the scale: LSQ (Esser et al. 2020, arXiv:1902.08153).

    The gradient of the scale is multiplied by ``1 / sqrt(n * q)``. Of a weight, ``n`` is the number of values
    that have the scale; of an activation, the number of those in one sample, where the first dimension counts
    the samples. ``q`` is the largest distance of an integer from zero.
    """
    parts, own = _by_parts(tensor.float(), spec)
    factor = _gradient_factor(tensor, spec, is_constant=is_constant)
    scale = _scaled_gradient(found.scale, factor).reshape(own)
    zero_point = found.zero_point.reshape(own)
    low, high = spec.quant_min - zero_point, spec.quant_max - zero_point
    steps = torch.clamp(parts / scale, low.to(parts.dtype), high.to(parts.dtype))
    rounded = steps + (torch.round(steps) - steps).detach()
    return (rounded * scale).reshape(tensor.shape).to(tensor.dtype)


def _gradient_factor(tensor: torch.Tensor, spec: IntegerSpec, *, is_constant: bool) -> float:
    is_symmetric = isinstance(spec, QuantizationSpec) and spec.symmetric
    largest = spec.quant_max - (spec.zero_point or 0) if is_symmetric else spec.quant_max - spec.quant_min
    if spec.granularity is Granularity.PER_GROUP:
        values = int(spec.group_size or 1)
    elif spec.granularity is Granularity.PER_AXIS:
        assert spec.ch_axis is not None
        values = tensor.numel() // max(tensor.shape[spec.ch_axis], 1)
    else:
        values = tensor.numel() // (1 if is_constant or tensor.dim() < 2 else max(tensor.shape[0], 1))
    return 1.0 / math.sqrt(max(values, 1) * largest)


def _scaled_gradient(scale: torch.Tensor, factor: float) -> torch.Tensor:
    return (scale - scale * factor).detach() + scale * factor


def _by_parts(tensor: torch.Tensor, spec: IntegerSpec) -> tuple[torch.Tensor, tuple[int, ...]]:
    """A tensor, reshaped where it has groups, and the shape in which its scales are broadcast to it."""
    if spec.granularity is Granularity.PER_AXIS:
        assert spec.ch_axis is not None
        own = [1] * tensor.dim()
        own[spec.ch_axis] = -1
        return tensor, tuple(own)
    if spec.granularity is Granularity.PER_GROUP:
        assert spec.group_size is not None
        groups = (*tensor.shape[:-1], tensor.shape[-1] // spec.group_size)
        return tensor.reshape(*groups, spec.group_size), (*groups, 1)
    return tensor, ()


def _traceable(tensor: torch.Tensor, found: QParams, spec: IntegerSpec) -> torch.Tensor:
    """The same out of operators that a compiler fuses, and that do not wait for a device."""
    parts, own = _by_parts(tensor.float(), spec)
    scale, zero_point = found.scale.reshape(own), found.zero_point.reshape(own).to(parts.dtype)
    low = (spec.quant_min - zero_point - 0.5) * scale
    high = (spec.quant_max - zero_point + 0.5) * scale
    inside = torch.minimum(torch.maximum(parts, low), high)
    if spec.zero_point_domain is ZeroPointDomain.FLOAT:
        integers = torch.round(parts.detach() / scale + zero_point)
    else:
        integers = torch.round(parts.detach() * (1.0 / scale)) + zero_point
    values = (integers.clamp(spec.quant_min, spec.quant_max) - zero_point) * scale
    # A sum with zero is exact, where one with the difference would round.
    return (values + (inside - inside.detach())).reshape(tensor.shape).to(tensor.dtype)


class _FakeQuantize(torch.autograd.Function):
    """Four passes over memory forward, and one back. torch's own operator takes one, 20 times as long."""

    @staticmethod
    def forward(
        ctx: Any,
        tensor: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor,
        spec: IntegerSpec,
        clips: bool,
    ) -> torch.Tensor:
        parts, own = _by_parts(tensor.float(), spec)
        per_tensor = spec.granularity is Granularity.PER_TENSOR
        # A copy, since a later pass may move the scale before this one goes back.
        step: Any = float(scale) if per_tensor else scale.reshape(own).clone()
        shift: Any = float(zero_point) if per_tensor else _shift(zero_point, spec, own)
        ctx.spec, ctx.step, ctx.shift, ctx.clips = spec, step, shift, clips
        if clips:
            ctx.save_for_backward(tensor)
        is_float = spec.zero_point_domain is ZeroPointDomain.FLOAT
        values = parts / step if is_float else parts * (1.0 / step)  # the order of operations of convert
        if is_float:
            values.add_(shift).round_().clamp_(spec.quant_min, spec.quant_max).sub_(shift)
        elif isinstance(shift, float):
            values.round_().clamp_(spec.quant_min - shift, spec.quant_max - shift)
        else:
            values.round_().add_(shift).clamp_(spec.quant_min, spec.quant_max).sub_(shift)
        rounded: torch.Tensor = values.mul_(step).reshape(tensor.shape)
        return rounded.to(tensor.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        if not ctx.clips:
            return gradient, None, None, None, None
        spec, step, shift = ctx.spec, ctx.step, ctx.shift
        (tensor,) = ctx.saved_tensors
        if isinstance(step, float):
            low, high = ((end - shift) * step for end in (spec.quant_min - 0.5, spec.quant_max + 0.5))
            found = torch.ops.aten.hardtanh_backward(gradient, tensor, low, high)
        else:
            parts, _ = _by_parts(tensor.float(), spec)
            integers = parts * (1.0 / step) + shift
            # In half precision integers of more than a few bits have no halves between them.
            given = gradient.reshape(parts.shape).float()
            inside = torch.ops.aten.hardtanh_backward(
                given, integers, spec.quant_min - 0.5, spec.quant_max + 0.5
            )
            found = inside.reshape(tensor.shape).to(gradient.dtype)
        return found, None, None, None, None


#: Elements that are gone over at once: so many fit into a cache.
_AT_ONCE = 2**16


class _FakeQuantizeRows(torch.autograd.Function):
    """``round(W * s / scale) * scale / s`` for each row, of which no step but the result is kept.

    The gradient of ``W`` is that of the result. That of ``s`` is ``(W - result) / s``, which leaves what
    rounding took away; where ``W`` is clipped, it is ``-result / s``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: torch.Tensor,
        factor: torch.Tensor,
        scale: torch.Tensor,
        spec: IntegerSpec,
        clips: bool,
    ) -> torch.Tensor:
        own = (-1, *[1] * (weight.dim() - 1))
        by_row, step = factor.reshape(own), scale.reshape(own)
        values = weight * by_row
        values.mul_(1.0 / step).round_().clamp_(spec.quant_min, spec.quant_max).mul_(step / by_row)
        ctx.spec, ctx.clips = spec, clips
        # Of the scale as it is now: a later pass may move it before this one goes back.
        ctx.steps_each = by_row / step if clips else None
        ctx.save_for_backward(weight, factor, values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        weight, factor, values = ctx.saved_tensors
        of_weight, inside = gradient, weight
        if ctx.clips:
            steps = weight * ctx.steps_each
            low, high = ctx.spec.quant_min - 0.5, ctx.spec.quant_max + 0.5
            of_weight = torch.ops.aten.hardtanh_backward(gradient, steps, low, high)
            inside = weight.masked_fill((steps <= low) | (steps >= high), 0.0)
        of_factor = None
        if ctx.needs_input_grad[1]:
            of_factor = _dots_of_rows(gradient, inside, values) / factor
        return of_weight, of_factor, None, None, None


def _dots_of_rows(gradient: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """``sum(gradient * (one - other))`` of each row, without another tensor of that size."""
    rows = max(1, _AT_ONCE * gradient.shape[0] // max(gradient.numel(), 1))
    parts = zip(*(torch.split(tensor, rows) for tensor in (gradient, one, other)), strict=True)
    return torch.cat([(a - b).mul_(given).flatten(1).sum(1) for given, a, b in parts])


def _shift(zero_point: torch.Tensor, spec: IntegerSpec, own: tuple[int, ...]) -> Any:
    """The zero point: a number where the spec says it, else a tensor."""
    if isinstance(spec, QuantizationSpec) and spec.symmetric and spec.zero_point is not None:
        return float(spec.zero_point)
    return zero_point.reshape(own).to(torch.float32, copy=True)


class _AsConverted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        tensor: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor,
        spec: IntegerSpec,
        is_constant: bool,
    ) -> torch.Tensor:
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(_is_inside(tensor, scale, zero_point, spec))
        operators = operators_for(QParams(scale, zero_point), spec)
        if is_constant:
            integers = integers_of(tensor, spec, operators.quantize, operators.arguments)
        else:
            integers = operators.quantize(tensor, *operators.arguments)
        return dequantized(integers, operators, tensor.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        (inside,) = ctx.saved_tensors
        return torch.where(inside, gradient, 0.0), None, None, None, None


def operators_for(found: QParams, spec: IntegerSpec) -> QDQOperators:
    """The operators that convert writes for known parameters."""
    parameters: Any = (found.scale, found.zero_point)
    if spec.granularity is Granularity.PER_TENSOR and not found.zero_point.is_floating_point():
        parameters = (float(found.scale), int(found.zero_point))
    return operators_of(spec, parameters)


def dequantized(integers: torch.Tensor, operators: QDQOperators, dtype: torch.dtype) -> torch.Tensor:
    """The floats that integers stand for, in a dtype, as convert has them computed."""
    arguments, keywords = operators.dequantizing_to(dtype)
    value: torch.Tensor = operators.dequantize(integers, *arguments, **(keywords or {}))
    return value.to(dtype)


def _is_inside(
    tensor: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, spec: IntegerSpec
) -> torch.Tensor:
    parts, own = _by_parts(tensor.float(), spec)
    integers = parts / scale.reshape(own) + zero_point.reshape(own)
    inside = (integers > spec.quant_min - 0.5) & (integers < spec.quant_max + 0.5)
    return inside.reshape(tensor.shape)
