"""Layers as products of matrices: a row of weights for each output, and a column of inputs for each position.

What is known of the inputs is their second moments, the sum of each column times its transpose. The squared
error of a layer's output is a quadratic form of them: of one row of weights that is off by ``d`` it is
``d @ moments @ d``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import attrs
import torch
from torch.fx import Node

from torchquilt.graph.node_values import argument_of, arguments_of, overload_name, tensor_of
from torchquilt.spec.qspec import Granularity, QuantizationSpec

#: Elements of the columns that are in memory at a time.
_PART = 2**23


@attrs.frozen
class MatrixLayout:
    """A linear, or a product with a matrix.

    Args:
        is_transposed: the weight has a row for each input instead of one for each output.
    """

    is_transposed: bool = False

    @property
    def output_axis(self) -> int:
        """Axis of the weight along which the outputs lie."""
        return 1 if self.is_transposed else 0

    def rows(self, weight: torch.Tensor) -> torch.Tensor:
        """A tensor of the shape of the weight as ``[groups, outputs, inputs]``."""
        return (weight.t() if self.is_transposed else weight)[None]

    def weight(self, rows: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """The tensor of the shape of the weight that has these rows."""
        return rows[0].t() if self.is_transposed else rows[0]

    def columns(self, value: torch.Tensor) -> Iterator[torch.Tensor]:
        """The inputs in parts, each ``[groups, positions, inputs]``."""
        flat = value.reshape(-1, value.shape[-1])
        yield from (part[None] for part in torch.split(flat, max(1, _PART // max(1, flat.shape[1]))))


@attrs.frozen
class ConvolutionLayout:
    """A convolution.

    Args:
        kernel: its size.
        stride, dilation: as those of the operator, a number for each dimension.
        padding: a pair for each dimension.
        groups: of channels that are read apart.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def output_axis(self) -> int:
        """Axis of the weight along which the outputs lie."""
        return 0

    def rows(self, weight: torch.Tensor) -> torch.Tensor:
        """A tensor of the shape of the weight as ``[groups, outputs, inputs]``."""
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def weight(self, rows: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """The tensor of the shape of the weight that has these rows."""
        return rows.reshape(shape)

    def columns(self, value: torch.Tensor) -> Iterator[torch.Tensor]:
        """The inputs in parts, each ``[groups, positions, inputs]``."""
        dimensions = len(self.kernel)
        if value.dim() == dimensions + 1:
            value = value[None]
        pads = [end for pair in reversed(self.padding) for end in pair]
        windows = torch.nn.functional.pad(value, pads)
        for axis, (size, stride, dilation) in enumerate(
            zip(self.kernel, self.stride, self.dilation, strict=True), start=2
        ):
            windows = windows.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
        # (samples, groups, channels, positions …, kernel …)
        windows = torch.unflatten(windows, 1, (self.groups, -1))
        positions = list(range(3, 3 + dimensions))
        kernel = list(range(3 + dimensions, 3 + 2 * dimensions))
        order = (1, 0, *positions, 2, *kernel)
        inputs = windows.shape[2] * math.prod(self.kernel)
        per_line = self.groups * math.prod(windows.shape[4 : 3 + dimensions]) * inputs
        lines = max(1, _PART // max(1, per_line))
        for sample in torch.split(windows, 1):
            for part in torch.split(sample, lines, dim=3):
                yield part.permute(order).reshape(self.groups, -1, inputs)


Layout: TypeAlias = MatrixLayout | ConvolutionLayout

#: Operator → positions of its input and its weight, and whether the weight has a row for each input.
_PRODUCTS = {
    "aten.linear.default": ("input", "weight", False),
    "aten.addmm.default": ("mat1", "mat2", True),
    "aten.mm.default": ("self", "mat2", True),
    "aten.matmul.default": ("self", "other", True),
}
_CONVOLUTIONS = tuple(f"aten.conv{d}d.{form}" for d in (1, 2, 3) for form in ("default", "padding"))


@attrs.frozen(eq=False)
class Reading:
    """An operator that reads a weight, as a layer.

    Args:
        node: the operator.
        input: the node that it reads beside the weight.
        layout: how.
    """

    node: Node
    input: Node
    layout: Layout


def reading_of(node: Node, weight: Node) -> Reading | str:
    """A layer that reads a weight, or the reason why an operator is none.

    Args:
        node: the operator.
        weight: an input of it.
    """
    name = overload_name(node)
    if name in _PRODUCTS:
        data, matrix, is_transposed = _PRODUCTS[name]
        value = tensor_of(weight)
        is_matrix = value is not None and value.dim() == 2
        if argument_of(node, matrix) is weight and argument_of(node, data) is not weight and is_matrix:
            return Reading(node, argument_of(node, data), MatrixLayout(is_transposed))
    if name in _CONVOLUTIONS and argument_of(node, "weight") is weight:
        return Reading(node, argument_of(node, "input"), _convolution(node, weight))
    if name == "aten.embedding.default":
        return "a lookup sums no products, so the nearest integers are the best"
    return f"{name or node.name} reads it, which is no linear or convolution with this weight"


def _convolution(node: Node, weight: Node) -> ConvolutionLayout:
    told: dict[str, Any] = arguments_of(node)
    kernel = tuple(int(size) for size in weight.meta["val"].shape[2:])
    stride, dilation = (_each(told[name], len(kernel)) for name in ("stride", "dilation"))
    padding = told["padding"]
    if padding == "valid":
        padding = 0
    if padding == "same":
        sums = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        pairs = tuple((total // 2, total - total // 2) for total in sums)
    else:
        pairs = tuple((size, size) for size in _each(padding, len(kernel)))
    return ConvolutionLayout(kernel, stride, pairs, dilation, int(told["groups"]))


def _each(value: Any, dimensions: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dimensions if len(values) == 1 else values


def has_own_parameters(layout: Layout, spec: QuantizationSpec, dimensions: int) -> bool:
    """Whether each output of a layer has parameters that are for no other output.

    Args:
        layout: how the layer reads its weight.
        spec: of the weight.
        dimensions: of the weight.
    """
    if spec.granularity is Granularity.PER_GROUP:
        return layout == MatrixLayout()
    is_output = spec.ch_axis is not None and spec.ch_axis % dimensions == layout.output_axis
    return is_output and not spec.uniform


class Moments:
    """The second moments of the inputs of layers that read the same, float32 ``[groups, inputs, inputs]``.

    Args:
        layout: how they are read.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        #: None before any input was seen
        self.sums: torch.Tensor | None = None

    def update(self, value: torch.Tensor) -> None:
        """Take in an input."""
        for columns in self._layout.columns(value.float()):
            found = columns.mT @ columns
            self.sums = found if self.sums is None else self.sums.add_(found)


def output_errors(off: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """The summed squared error of each output, ``[groups, outputs]``.

    Args:
        off: how far each weight is off, ``[groups, outputs, inputs]``.
        moments: of the inputs, ``[groups, inputs, inputs]``, of the same dtype.
    """
    return ((off @ moments) * off).sum(-1).clamp(min=0.0)
