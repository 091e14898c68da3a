"""The integers of a constant: which operators compute them, and how without copies of the whole of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import torch

from torchquilt.spec.qspec import Granularity, OwnSpec, ZeroPointDomain

#: An operator, and what follows the tensor in its call.
Step: TypeAlias = tuple[Any, tuple[Any, ...]]

#: Elements that are quantized at a time: their intermediate results stay in the processor's cache, and are
#: a small part of a large weight. The smallest number from which the operators' own overhead is not seen.
PART = 2**18


def steps_of_quantizing(
    value: torch.Tensor, spec: OwnSpec, quantize: Any, arguments: tuple[Any, ...]
) -> list[Step]:
    """Operators, each with what follows the tensor in its call, that quantize a constant of such a shape.

    ``quantized_decomposed.quantize_per_channel`` rounds before it adds the zero point and cuts off what
    is left of it, so with a float zero point it is off by up to one and a half steps. Written out, the
    integers are those nearest to ``value / scale + zero_point``; the same operator dequantizes them.

    Args:
        value: a constant, or a fake tensor of its shape, strides and dtype.
        spec: what it is quantized to.
        quantize: the operator that does it.
        arguments: scale, zero point and what else follows the tensor in a call of ``quantize``.
    """
    aten = torch.ops.aten
    first: list[Step] = []
    if not value.is_contiguous():
        first.append((aten.contiguous.default, ()))
    if value.dtype is not torch.float32:
        first.append((aten.to.dtype, (torch.float32,)))
    if spec.zero_point_domain is not ZeroPointDomain.FLOAT:
        return [*first, (quantize, arguments)]
    scale, zero_point = arguments[:2]
    # The dimensions that the parameters have come last, so that these are broadcast along the others.
    shape, own = list(value.shape), list(range(value.dim()))
    if spec.group_size is not None:
        shape[-1:] = [shape[-1] // spec.group_size, spec.group_size]
        own = [own[-1] + 1, *own]
    elif spec.ch_axis is not None:
        own.append(own.pop(spec.ch_axis))
    back = sorted(range(len(own)), key=own.__getitem__)
    return [
        *first,
        (aten.reshape.default, (shape,)),
        (aten.permute.default, (own,)),
        (aten.div.Tensor, (scale,)),
        (aten.add.Tensor, (zero_point,)),
        (aten.round.default, ()),
        (aten.clamp.default, (spec.quant_min, spec.quant_max)),
        (aten.to.dtype, (spec.dtype,)),
        (aten.permute.default, (back,)),
        (aten.reshape.default, (list(value.shape),)),
    ]


@torch.no_grad()
def integers_of(
    value: torch.Tensor, spec: OwnSpec, quantize: Any, arguments: tuple[Any, ...]
) -> torch.Tensor:
    """Compute the steps of quantizing, part by part.

    Args:
        value: a constant.
        spec: what it is quantized to.
        quantize: the operator that does it.
        arguments: as for :func:`steps_of_quantizing`, but with tensors (or, per tensor, numbers) instead of
            nodes: scale and zero point have the shape of the granularity.

    Returns:
        Integers of the shape of ``value`` and the dtype of ``spec``, contiguous.
    """
    found = torch.empty(value.shape, dtype=spec.dtype, device=value.device)
    is_plain = value.dtype is torch.float32 and spec.granularity in _IN_PLACE
    is_plain = is_plain and spec.zero_point_domain is not ZeroPointDomain.FLOAT
    room = torch.empty(0, device=value.device)
    for here, into, own in _parts(value, found, spec, arguments):
        if is_plain:
            room.resize_(here.shape)  # parts are of one size, but for the last
            _quantize_into(into, here, spec, own, room)
            continue
        for target, following in steps_of_quantizing(here, spec, quantize, own):
            here = target(here, *following)
        into.copy_(here)
    return found


_IN_PLACE = (Granularity.PER_TENSOR, Granularity.PER_AXIS)


def _quantize_into(
    into: torch.Tensor, value: torch.Tensor, spec: OwnSpec, arguments: tuple[Any, ...], room: torch.Tensor
) -> None:
    """Compute as the operators for :data:`_IN_PLACE` do, operation by operation, in the memory of ``room``.

    The operators make a tensor for each of their operations. Those would lie between the weights that are
    kept, and the memory under them would be lost to the process.
    """
    scale, zero_point = arguments[:2]
    if isinstance(scale, torch.Tensor):
        assert spec.ch_axis is not None
        shape = [1] * value.dim()
        shape[spec.ch_axis] = -1
        scale, zero_point = scale.view(shape), zero_point.view(shape)
    torch.mul(value, 1.0 / scale, out=room)
    room.round_().add_(zero_point).clamp_(spec.quant_min, spec.quant_max)
    into.copy_(room)


def _parts(
    value: torch.Tensor, found: torch.Tensor, spec: OwnSpec, arguments: tuple[Any, ...]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, tuple[Any, ...]]]:
    """Parts of the value and of the result, each with the arguments for it."""
    per_tensor = spec.granularity is Granularity.PER_TENSOR
    if value.numel() <= PART:
        yield value, found, arguments
        return
    if per_tensor:
        value, found = value.reshape(-1), found.view(-1)
    axis = spec.ch_axis if spec.granularity is Granularity.PER_AXIS and spec.ch_axis is not None else 0
    length = value.shape[axis]
    step = max(1, PART * length // value.numel())
    for start in range(0, length, step):
        stop = min(start + step, length)
        own = arguments
        if not per_tensor:
            scale, zero_point, *rest = arguments
            own = (scale[start:stop], zero_point[start:stop], *rest)
        size = stop - start
        yield value.narrow(axis, start, size), found.narrow(axis, start, size), own
