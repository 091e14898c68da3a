"""The constants of a linear layer or a convolution: its weight, and its bias in steps of the accumulator."""

from __future__ import annotations

import math

import attrs
import torch
from torch.fx import Node

from torchquilt.graph.constant_folding import constant_value
from torchquilt.graph.node_values import is_constant, overload_name
from torchquilt.pt2e.reference.arithmetic import float32
from torchquilt.pt2e.reference.sites import Site
from torchquilt.pt2e.reference.tensors import PerAxis, PerTensor
from torchquilt.pt2e.reference.writer import Writer
from torchquilt.support.pattern import Reject


@attrs.frozen(eq=False)
class Weight:
    """A weight of integers.

    Args:
        integers: the node that reads them.
        scale: float32, of shape ``()``, or one for each output channel, to be broadcast along the output.
        zero_point: int32, of shape ``()``, or one for each output channel, to be broadcast along the weight.
        reach: the largest magnitude of an integer less its zero point.
        fan_in: how many products an output is the sum of.
    """

    integers: Node
    scale: torch.Tensor
    zero_point: torch.Tensor
    reach: int
    fan_in: int

    def name(self, what: str) -> str:
        """A name for a constant that belongs to the weight."""
        return f"{name_of(self.integers)}_{what}"

    def centred(self, write: Writer, dtype: torch.dtype) -> Node:
        """The integers less the zero points, computed in the graph, so that the integers are stored."""
        integers = write.cast(self.integers, dtype)
        if not bool(self.zero_point.any()):
            return integers
        zero_point = write.stored(self.zero_point, self.name("zero_point_int32"))
        return write(torch.ops.aten.sub.Tensor, integers, write.cast(zero_point, dtype))


def weight_of(site: Site) -> Weight | Reject:
    """The weight of an operator, or why there are no integers to compute with."""
    anchor = site.anchor
    (weight,) = site.read("weight")
    if not isinstance(weight, (PerTensor, PerAxis)) or not is_constant(weight.integers):
        return Reject("weight", (anchor,), f"the weight of {anchor.name} is not a constant of integers")
    shape = weight.integers.meta["val"].shape
    if len(shape) < 2:
        return Reject("rank", (anchor,), f"the weight of {anchor.name} is a vector")
    fan_in = math.prod(shape) // shape[channel_axis(anchor)]
    if isinstance(weight, PerTensor):
        (scale,) = float32(weight.qparams.scale)
        zero_point = torch.tensor(weight.qparams.zero_point, dtype=torch.int32)
        return Weight(weight.integers, scale, zero_point, weight.reach, fan_in)
    if weight.axis != channel_axis(anchor):
        return Reject("axis", (anchor,), f"the scales of the weight of {anchor.name} go along its inputs")
    zero_point = constant_value(site.model, weight.zero_point)
    if zero_point.is_floating_point():
        return Reject("zero_point", (anchor,), f"the weight of {anchor.name} has a float zero point")
    # A transposed convolution has the same output channels, counted within the group, for each group.
    groups = int(site.arguments["groups"]) if is_transposed(anchor) else 1
    scale = constant_value(site.model, weight.scale).float().repeat(groups)
    return Weight(
        weight.integers,
        scale.reshape(along_channels(anchor)),
        zero_point.to(torch.int32).reshape([-1 if axis == weight.axis else 1 for axis in range(len(shape))]),
        int(max(weight.high - zero_point.min(), zero_point.max() - weight.low)),
        fan_in,
    )


def bias_in_steps(site: Site, source: PerTensor, weight: Weight) -> torch.Tensor | None:
    """``round(bias / (input scale * weight scale))``, float32; None where there is no bias.

    It is multiplied by the reciprocal, as by the operators that quantize.
    """
    for node in site.match.inputs("bias"):
        step = weight.scale.flatten() * float32(source.qparams.scale)[0]
        return torch.round(constant_value(site.model, node).float() * (1.0 / step))
    return None


def is_transposed(anchor: Node) -> bool:
    """Whether an operator is a transposed convolution."""
    return "conv_transpose" in overload_name(anchor)


def channel_axis(anchor: Node) -> int:
    """The axis of the weight along which the output channels lie."""
    return 1 if is_transposed(anchor) else 0


def along_channels(anchor: Node) -> list[int]:
    """The shape of one number for each output channel, to be broadcast along the output of an operator."""
    weight = anchor.args[1]
    assert isinstance(weight, Node)
    return [-1, *[1] * (weight.meta["val"].dim() - 2)]


def name_of(node: Node) -> str:
    """A name for what belongs to a constant: its own where it is stored."""
    return str(node.target) if node.op == "get_attr" else node.name
