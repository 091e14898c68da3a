"""QuantizeLinear and DequantizeLinear in a graph of ONNX: their parameters, and what they compute."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from onnxscript import ir

from torchquilt_onnxruntime.graphs import array_of


@attrs.frozen(eq=False)
class Parameters:
    """Parameters of a QuantizeLinear or DequantizeLinear that are constants.

    Args:
        scale, zero_point: arrays; of one element for a whole tensor.
        dtype: of the integers.
        axis, block_size: as the node has them; None for a whole tensor.
    """

    scale: np.ndarray[Any, Any]
    zero_point: np.ndarray[Any, Any]
    dtype: ir.DataType
    axis: int | None
    block_size: int

    @property
    def is_per_tensor(self) -> bool:
        """Whether there is one scale."""
        return self.scale.size == 1

    def is_same(self, other: Parameters | None) -> bool:
        """Whether two nodes go to and from the same integers."""
        return (
            other is not None
            and (self.dtype, self.axis, self.block_size) == (other.dtype, other.axis, other.block_size)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def quantized(self, value: float) -> int:
        """The integer that QuantizeLinear makes of a number."""
        limits = np.iinfo(self.dtype.numpy())
        steps = np.rint(np.float32(value) / np.float32(self.scale.reshape(-1)[0]))
        return int(np.clip(steps + int(self.zero_point.reshape(-1)[0]), limits.min, limits.max))


def parameters_of(node: ir.Node | None) -> Parameters | None:
    """The parameters of a node that quantizes or dequantizes; None where they are not constants."""
    if node is None or node.domain or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return None
    scale = array_of(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    integers = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
    dtype = given.dtype if given is not None else integers.dtype if integers is not None else None
    if scale is None or dtype is None:
        return None
    zero_point = np.zeros(scale.shape, np.int64) if given is None else array_of(given)
    if zero_point is None:
        return None
    is_one = scale.size == 1 and not node.attributes.get_int("block_size", 0)
    axis = None if is_one else node.attributes.get_int("axis", 1)
    return Parameters(
        scale, zero_point.astype(np.int64), dtype, axis, node.attributes.get_int("block_size", 0)
    )


def is_quantize(node: ir.Node | None) -> bool:
    """Whether a node is QuantizeLinear."""
    return node is not None and not node.domain and node.op_type == "QuantizeLinear"


def is_dequantize(node: ir.Node | None) -> bool:
    """Whether a node is DequantizeLinear."""
    return node is not None and not node.domain and node.op_type == "DequantizeLinear"


def dequantize_behind(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that a value comes from, if it does."""
    producer = None if value is None else value.producer()
    return producer if is_dequantize(producer) else None
