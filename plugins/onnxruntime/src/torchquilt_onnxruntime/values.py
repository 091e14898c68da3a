"""Values between the steps of a program: the optimized model returns what its kernels return."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from torchquilt_onnxruntime.optimized import Optimized
from torchquilt_onnxruntime.packages import required
from torchquilt_onnxruntime.runner import options, session
from torchquilt_onnxruntime.stored import StoredModel, nodes_of

_DEQUANTIZE = "DequantizeLinear"
#: Keys of a value's metadata, in a file in which no operator dequantizes it.
_SCALE, _ZERO_POINT = "torchquilt.scale", "torchquilt.zero_point"


def values_between(stored: StoredModel, inputs: Mapping[str, Any]) -> dict[tuple[str, int], Any]:
    """Values of a run, as floats: step and number of an operator in it → what that returns.

    The kernels are those of the program, but for how their values lie in memory. Integers are dequantized as
    the file does it. What a fused kernel does not return has no value.

    Args:
        stored: the program.
        inputs: name → tensor of the runtime.
    """
    onnx = required("onnx")
    model = onnx.ModelProto.FromString(stored.buffer)
    positions = Optimized.of(stored.buffer, model, stored.files).positions()
    optimized = Optimized.of(stored.buffer, model, stored.files, keeps_layouts=True)
    names, runs = optimized.values(), optimized.model
    there = {one.name for one in runs.graph.output}
    runs.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    running = session(runs.SerializeToString(), _as_it_is(), optimized.files)
    returned = running.run_with_ort_values(list(names), dict(inputs))
    scales = _scales(model)
    found = {}
    for (name, source), value in zip(names.items(), returned, strict=True):
        real = _real(value.numpy(), scales.get(name))
        if real is not None and source in positions:
            found[positions[source]] = real
    return found


def _as_it_is() -> Any:
    """Options of a session that optimizes nothing more."""
    chosen = options()
    chosen.graph_optimization_level = required("onnxruntime").GraphOptimizationLevel.ORT_DISABLE_ALL
    return chosen


def _scales(model: Any) -> dict[str, tuple[Any, Any]]:
    """Quantized value → the scale and zero point with which the file dequantizes it, of one scale each."""
    onnx = required("onnx")
    held = {one.name: one for one in model.graph.initializer}
    found = {}
    for node in nodes_of(model.graph):
        parameters = [held.get(name) for name in node.input[1:3]]
        is_read = node.op_type == _DEQUANTIZE and len(parameters) == 2
        if is_read and all(one is not None and math.prod(one.dims) == 1 for one in parameters):
            scale, zero_point = map(onnx.numpy_helper.to_array, parameters)
            found[node.input[0]] = (scale.item(), int(zero_point.item()))
    for value in model.graph.value_info:
        told = {one.key: one.value for one in value.metadata_props}
        if _SCALE in told:
            found.setdefault(value.name, (float.fromhex(told[_SCALE]), int(told[_ZERO_POINT])))
    return found


def told_parameters(model: Any) -> dict[str, dict[str, str]]:
    """Quantized value → the metadata that tells its parameters, to keep where nothing else does."""
    return {
        name: {_SCALE: scale.hex(), _ZERO_POINT: str(zero_point)}
        for name, (scale, zero_point) in _scales(model).items()
    }


def _real(value: Any, parameters: tuple[float, int] | None) -> Any:
    """A tensor of floats; None for integers that nothing dequantizes."""
    import torch

    if np.issubdtype(value.dtype, np.floating):
        return torch.from_numpy(value)
    if parameters is None:
        return None
    scale, zero_point = parameters
    return (torch.from_numpy(value.astype(np.int32)) - zero_point).to(torch.float32) * scale
