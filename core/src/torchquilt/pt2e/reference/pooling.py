"""Means: of an image, or over any dimensions of a fixed size."""

from __future__ import annotations

import math

import torch
from torch.fx import Node

from torchquilt.pt2e.reference.arithmetic import accumulator, centred, float32, scaled
from torchquilt.pt2e.reference.sites import Site, check_sources
from torchquilt.pt2e.reference.tensors import ActivationQParams
from torchquilt.pt2e.reference.writer import Writer
from torchquilt.support.pattern import Reject

_ATEN = torch.ops.aten


def check_mean(site: Site) -> Reject | None:
    """Whether the input is quantized, and the number of elements of a mean is fixed."""
    anchor = site.anchor
    rejected = check_sources(site)
    if rejected is not None:
        return rejected
    if site.arguments.get("dtype") is not None:
        return Reject("dtype", (anchor,), f"{anchor.name} computes in a type of its own")
    if any(size != 1 for size in site.arguments.get("output_size", ())):
        return Reject("output_size", (anchor,), f"{anchor.name} gives more than one pixel")
    if not all(isinstance(size, int) for size in _averaged_sizes(site)):
        return Reject(
            "dynamic_shape", (anchor,), f"the number of elements that {anchor.name} averages is not fixed"
        )
    return None


def averaged(site: Site, write: Writer, qparams: ActivationQParams) -> Node:
    """A sum of integers, divided by their number as they are rescaled for the output.

    Means of even numbers of integers often lie half way between two. XNNPACK adds the zero point before it
    rounds half to even, so it is done here, too.
    """
    (source,) = site.sources
    count = math.prod(map(int, _averaged_sizes(site)))
    dtype = accumulator(count * source.reach)
    keepdim = bool(site.arguments.get("keepdim", True))
    values = centred(write, source, dtype)
    total = write(_ATEN.sum.dim_IntList, values, _averaged_dims(site), keepdim, dtype=dtype)
    step, number, output_step = float32(source.qparams.scale, count, qparams.scale)
    mean = scaled(write, total, step / (output_step * number))
    if qparams.zero_point:
        mean = write(_ATEN.add.Tensor, mean, qparams.zero_point)
    mean = write(_ATEN.clamp.default, mean, qparams.low, qparams.high)
    return write.cast(write(_ATEN.round.default, mean), qparams.dtype)


def _averaged_dims(site: Site) -> list[int]:
    """The dimensions that a mean goes over: those it names, all, or the image of a pool."""
    if "output_size" in site.arguments:
        return [-2, -1]
    rank = len(_shape(site))
    return [dim % rank for dim in site.arguments["dim"] or range(rank)]


def _averaged_sizes(site: Site) -> list[int | torch.SymInt]:
    shape = _shape(site)
    return [shape[dim] for dim in _averaged_dims(site)]


def _shape(site: Site) -> torch.Size:
    (source,) = site.match.inputs("input_activation")
    shape: torch.Size = source.meta["val"].shape
    return shape
