"""Q/DQ models made by hand, without torchquilt: what ONNX Runtime itself makes of them."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

_DTYPES = {"uint8": np.uint8, "int8": np.int8, "uint16": np.uint16, "int16": np.int16}
_MIDDLES = {"uint8": 128, "int8": 0, "uint16": 2**15, "int16": 0}


class Builder:
    """A graph under construction; each method returns the name of a value."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.inputs: list[Any] = []

    def input(self, *shape: int) -> str:
        """A float input."""
        name = f"input_{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def constant(self, value: Any) -> str:
        """A stored tensor."""
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def call(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """An operator; several names where it has several outputs."""
        names = [f"{operator}_{len(self.nodes)}_{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, name=names[0], **attributes))
        return names[0] if outputs == 1 else names

    def quantized(
        self, value: str, dtype: str = "uint8", scale: float = 0.05, zero_point: int | None = None
    ) -> str:
        """A tensor that is quantized and dequantized."""
        told = _MIDDLES[dtype] if zero_point is None else zero_point
        parameters = self.constant(np.float32(scale)), self.constant(_DTYPES[dtype](told))
        integers = self.call("QuantizeLinear", value, *parameters)
        return self.call("DequantizeLinear", integers, *parameters)

    def weight(self, *shape: int, axis: int | None = None, dtype: str = "int8", block: int = 0) -> str:
        """A weight of integers, dequantized: with one scale, one for each index of an axis, or in blocks."""
        integers = (np.arange(math.prod(shape)) % 16 - 8).reshape(shape)
        if block:
            scales = [size // block if number == axis else size for number, size in enumerate(shape)]
            options = {"axis": axis, "block_size": block}
        else:
            scales, options = ([] if axis is None else [shape[axis]]), {} if axis is None else {"axis": axis}
        scale = self.constant(np.full(scales, 0.01, np.float32))
        if dtype == "int4":
            name = f"constant_{len(self.initializers)}"
            self.initializers.append(helper.make_tensor(name, TensorProto.INT4, shape, integers.ravel()))
            return self.call("DequantizeLinear", name, scale, **options)
        shift = 128 if dtype == "uint8" else 0
        zero_point = self.constant(np.full(scales, shift, _DTYPES[dtype]))
        stored = self.constant((integers + shift).astype(_DTYPES[dtype]))
        return self.call("DequantizeLinear", stored, scale, zero_point, **options)

    def bias(self, size: int) -> str:
        """A bias of 32-bit integers, dequantized."""
        return self.call(
            "DequantizeLinear",
            self.constant(np.arange(size, dtype=np.int32)),
            self.constant(np.full(size, 0.0005, np.float32)),
            axis=0,
        )


def kernels(make: Callable[[Builder], str | list[str]]) -> list[str]:
    """The operators of the model that ONNX Runtime optimizes a graph to, in order.

    Args:
        make: builds the graph, and returns its outputs.
    """
    builder = Builder()
    made = make(builder)
    outputs = [made] if isinstance(made, str) else made
    told = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(builder.nodes, "made", builder.inputs, told, builder.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [node.op_type for node in onnx.load(path).graph.node]
