"""Operators with a weight: the axes of their channels, and factors for the channels of their weights."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from torchquilt.graph.node_values import argument_of, overload_name, rank, tensor_of

_DIMENSIONS = {
    **{f"aten.conv{n}d.{form}": n for n in (1, 2, 3) for form in ("default", "padding")},
    "aten.conv_transpose1d.default": 1,
    "aten.conv_transpose2d.input": 2,
    "aten.conv_transpose3d.input": 3,
}
LINEAR = "aten.linear.default"
#: Overloads of operators with a weight: one for each output and input channel.
WEIGHTED = frozenset((*_DIMENSIONS, LINEAR))


def is_weighted(node: Node) -> bool:
    """Whether a node is a linear, a convolution or a transposed one, with a weight of two axes or more."""
    if overload_name(node) not in WEIGHTED:
        return False
    weight = argument_of(node, "weight")
    return isinstance(weight, Node) and (rank(weight) or 0) >= 2


def is_transposed(node: Node) -> bool:
    """Whether it is a transposed convolution, whose weight has the input channels first."""
    return "conv_transpose" in overload_name(node)


def groups_of(node: Node) -> int:
    """Number of groups; 1 for a linear."""
    return 1 if overload_name(node) == LINEAR else int(argument_of(node, "groups"))


def channel_axis(node: Node, tensor: Node) -> int:
    """Axis of the channels in the input or the output of an operator, from 0."""
    count = rank(tensor) or 0
    if overload_name(node) == LINEAR:
        return count - 1
    return count - 1 - _DIMENSIONS[overload_name(node)]


def output_channels(node: Node) -> int:
    """Number of output channels."""
    value: Any = tensor_of(node)
    return int(value.shape[channel_axis(node, node)])


def by_output_and_input(node: Node, weight: torch.Tensor) -> torch.Tensor:
    """A view of a weight as (groups, outputs in a group, inputs in a group, elements of the kernel)."""
    groups = groups_of(node)
    if is_transposed(node):
        parts = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return parts.transpose(1, 2)
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def scaled_weight(
    node: Node, weight: torch.Tensor, outputs: torch.Tensor | None, inputs: torch.Tensor | None
) -> torch.Tensor:
    """A weight with a factor for each output channel and one for each input channel, rounded once."""
    # (groups, outputs in a group, inputs in a group, kernel)
    parts = by_output_and_input(node, weight.double())
    if outputs is not None:
        parts = parts * outputs.double().reshape(parts.shape[0], parts.shape[1], 1, 1)
    if inputs is not None:
        parts = parts * inputs.double().reshape(parts.shape[0], 1, parts.shape[2], 1)
    parts = parts.transpose(1, 2) if is_transposed(node) else parts
    return parts.reshape(weight.shape).to(weight.dtype)
