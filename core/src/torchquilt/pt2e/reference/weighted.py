"""Linear layers and convolutions: products with a constant weight, summed up as integers.

With a quantized output the bias is an integer, too, in steps of the accumulator, as ExecuTorch stores it for
XNNPACK. Without one the sums are scaled to float, and the float bias is added; so it is for inputs that are
quantized dynamically.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from torchquilt.graph.node_values import is_constant, overload_name
from torchquilt.pt2e.reference.arithmetic import (
    accumulator,
    centred,
    float32,
    requantized,
    scaled,
    scaled_by_each,
)
from torchquilt.pt2e.reference.sites import Site
from torchquilt.pt2e.reference.tensors import ActivationQParams, Dynamic, PerTensor
from torchquilt.pt2e.reference.weights import (
    Weight,
    along_channels,
    bias_in_steps,
    is_transposed,
    name_of,
    weight_of,
)
from torchquilt.pt2e.reference.writer import Writer
from torchquilt.support.pattern import Reject

_ATEN = torch.ops.aten


def check_weighted(site: Site) -> Reject | None:
    """Whether input, weight and bias are what the arithmetic needs."""
    anchor = site.anchor
    (source,) = site.read("input_activation")
    if not isinstance(source, (PerTensor, Dynamic)):
        return Reject("input_not_quantized", (anchor,), f"the input of {anchor.name} is not quantized")
    if isinstance(source, Dynamic) and source.per_token and overload_name(anchor) != "aten.linear.default":
        return Reject("per_token", (anchor,), f"{anchor.name} sums over rows with different scales")
    weight = weight_of(site)
    if isinstance(weight, Reject):
        return weight
    if not all(map(is_constant, site.match.inputs("bias"))):
        return Reject("bias", (anchor,), f"the bias of {anchor.name} is computed from the input")
    bias = bias_in_steps(site, source, weight) if isinstance(source, PerTensor) else None
    if bias is not None and not bool((bias.abs() < 2**31).all()):
        return Reject("bias", (anchor,), f"the bias of {anchor.name} does not fit into int32")
    return None


def weighted(site: Site, write: Writer, qparams: ActivationQParams) -> Node:
    """The operator on integers, rescaled for the output."""
    source, weight = _operands(site)
    if isinstance(source, Dynamic):
        operators = qparams.operators
        return write(operators.quantize, weighted_in_float(site, write), *operators.arguments)
    sums = _summed(site, write, source, weight, bias_in_steps(site, source, weight))
    step, output_step = float32(source.qparams.scale, qparams.scale)
    scale = step * weight.scale / output_step
    return requantized(write, sums, scale, qparams, weight.name("requantization_scale"))


def weighted_in_float(site: Site, write: Writer) -> Node:
    """The operator on integers, times the scales of input and weight, plus the bias, in float32."""
    source, weight = _operands(site)
    sums, scale = _summed(site, write, source, weight, None), weight.scale
    if isinstance(source, Dynamic):
        sums = scaled_by_each(write, sums, source.scale)
    else:
        scale = float32(source.qparams.scale)[0] * scale
    result = scaled(write, sums, scale, weight.name("accumulator_scale"))
    for bias in site.match.inputs("bias"):
        shape = along_channels(site.anchor)
        aligned = write(_ATEN.view.default, bias, shape) if len(shape) > 1 else bias
        result = write(_ATEN.add.Tensor, result, aligned)
    return write.cast(result, site.match.output.meta["val"].dtype)


def _operands(site: Site) -> tuple[PerTensor | Dynamic, Weight]:
    (source,), weight = site.read("input_activation"), weight_of(site)
    assert isinstance(source, (PerTensor, Dynamic)), "the check is for that"
    assert isinstance(weight, Weight), "the check is for that"
    return source, weight


def _summed(
    site: Site, write: Writer, source: PerTensor | Dynamic, weight: Weight, bias: torch.Tensor | None
) -> Node:
    """The operator on the integers of input and weight, and of the bias where there is one."""
    largest = weight.fan_in * weight.reach * source.reach
    dtype = accumulator(largest if bias is None else largest + float(bias.abs().max()))
    if is_transposed(site.anchor) or any(step != 1 for step in site.arguments.get("dilation", ())):
        dtype = torch.int64  # torch 2.13 convolves int32 neither transposed nor dilated
    # The padding of a convolution is 0, which is the zero point once that has been taken off.
    operands = [centred(write, source, dtype), weight.centred(write, dtype), None]
    if bias is not None:
        (node,) = site.match.inputs("bias")
        operands[2] = write.cast(write.stored(bias.to(torch.int32), f"{name_of(node)}_int32"), dtype)
    options = list(site.arguments.values())[len(operands) :]
    return write(site.anchor.target, *operands, *options)
