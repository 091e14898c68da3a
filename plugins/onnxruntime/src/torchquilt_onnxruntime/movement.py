"""Operators that run on the integers: data movement and clamps between DequantizeLinear and QuantizeLinear.

Quantizing is monotone and looks at each element alone. So it is the same before an operator that moves
elements as behind it, and a clamp of floats before it is a clamp of integers behind it, between the integers
of its limits. Both are exact. A QuantizeLinear is written before such operators. Where it meets a
DequantizeLinear with the same parameters, both go; where it meets a convolution or a product, it is next to
it, which the runtime's fusions ask for. A clamp to all integers of the dtype is none, and is left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnxscript import ir

from torchquilt_onnxruntime.exporting import ALSO, OVERLOAD, SOURCE
from torchquilt_onnxruntime.graphs import erase, graphs_of, number_of, present, readers, set_type, store
from torchquilt_onnxruntime.qdq import Parameters, is_dequantize, is_quantize, parameters_of
from torchquilt_onnxruntime.withholding import is_withheld

#: Operators that move elements of their first input, and have kernels for 8-bit integers.
MOVING = frozenset(
    {
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "MaxPool",
        "ReduceMax",
        "ReduceMin",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
#: Operators that move elements of all their inputs.
JOINING = frozenset({"Concat"})
_CLAMPS = frozenset({"Clip", "Relu"})


def move_quantizes(model: ir.Model) -> None:
    """Write each QuantizeLinear before the operators that run on integers as well."""
    for graph in graphs_of(model):
        waiting = [node for node in graph if is_quantize(node)]
        while waiting:
            waiting += _moved(model, waiting.pop())


def _moved(model: ir.Model, quantize: ir.Node) -> list[ir.Node]:
    """Move one QuantizeLinear as far as one operator, and return those that may be moved then."""
    own = parameters_of(quantize)
    producer = quantize.inputs[0].producer() if quantize.inputs[0] is not None else None
    if own is None or not own.is_per_tensor or producer is None or producer.domain:
        return []
    if is_dequantize(producer):
        _cancel(quantize, producer, own)
        return []
    if is_withheld(producer) or producer.graph is not quantize.graph or not _are_read_alike(producer, own):
        return []
    if producer.op_type in _CLAMPS:
        return _moved_before_clamp(model, quantize, producer, own)
    if producer.op_type in MOVING and own.dtype.itemsize == 1:
        return _moved_before(quantize, producer, (0,))
    if producer.op_type in JOINING and own.dtype.itemsize == 1:
        sources = [parameters_of(one.producer()) if one is not None else None for one in producer.inputs]
        if all(own.is_same(one) for one in sources):
            return _moved_before(quantize, producer, range(len(producer.inputs)))
    return []


def _are_read_alike(producer: ir.Node, own: Parameters) -> bool:
    """Whether all that reads the outputs of a node quantizes it with these parameters."""
    for value in producer.outputs:
        if value.is_graph_output():
            return False
        for reader in readers(value):
            if not is_quantize(reader) or reader.graph is not producer.graph:
                return False
            if not own.is_same(parameters_of(reader)):
                return False
    return any(value.uses() for value in producer.outputs)


def _cancel(quantize: ir.Node, dequantize: ir.Node, own: Parameters) -> None:
    """Let the readers of what is quantized read the integers that it was dequantized from."""
    integers = dequantize.inputs[0]
    assert integers is not None
    if own.is_same(parameters_of(dequantize)) and not quantize.outputs[0].is_graph_output():
        quantize.outputs[0].replace_all_uses_with(integers)
        _tell_clamps(quantize, integers.producer())
        erase(quantize)


def _tell_clamps(quantize: ir.Node, producer: ir.Node | None) -> None:
    """Let the node that makes the integers say which clamps were left out behind it."""
    if producer is not None and ALSO in quantize.metadata_props:
        told = (producer.metadata_props.get(ALSO), quantize.metadata_props[ALSO])
        producer.metadata_props[ALSO] = "\n".join(filter(None, told))


def _copy_before(quantize: ir.Node, node: ir.Node, value: ir.Value | None) -> ir.Node:
    """A QuantizeLinear of another value, right before a node."""
    made = ir.Node(
        "",
        "QuantizeLinear",
        [value, *quantize.inputs[1:]],
        attributes=list(quantize.attributes.values()),
        metadata_props=dict(quantize.metadata_props),
    )
    made.meta.update(quantize.meta)
    set_type(made.outputs[0], quantize.outputs[0].dtype)
    made.outputs[0].shape = value.shape if value is not None else None
    present(node.graph).insert_before(node, made)
    return made


def _moved_before(quantize: ir.Node, node: ir.Node, positions: Any) -> list[ir.Node]:
    made = []
    for position in positions:
        one = _copy_before(quantize, node, node.inputs[position])
        node.replace_input_with(position, one.outputs[0])
        made.append(one)
    for value in node.outputs:
        for reader in readers(value):
            reader.outputs[0].replace_all_uses_with(value)
            erase(reader)
        set_type(value, made[0].outputs[0].dtype)
    return made


def _moved_before_clamp(model: ir.Model, quantize: ir.Node, clamp: ir.Node, own: Parameters) -> list[ir.Node]:
    """Write a clamp of floats as one of the integers, or leave it out where it changes none."""
    limits = np.iinfo(own.dtype.numpy())
    low, high = _limits(clamp)
    if low is None or high is None:
        return []
    least, most = own.quantized(low), own.quantized(high)
    if own.dtype.itemsize != 1 and (least, most) != (limits.min, limits.max):
        return []
    made = _copy_before(quantize, clamp, clamp.inputs[0])
    result = made.outputs[0]
    if (least, most) != (limits.min, limits.max):
        bounds = [
            store(model.graph, f"{clamp.outputs[0].name}_{name}", np.array(value, own.dtype.numpy()))
            for name, value in (("min", least), ("max", most))
        ]
        clip = ir.Node("", "Clip", [result, *bounds], metadata_props=dict(clamp.metadata_props))
        clip.meta.update(clamp.meta)
        clip.outputs[0].dtype, clip.outputs[0].shape = own.dtype, result.shape
        present(clamp.graph).insert_before(clamp, clip)
        result = clip.outputs[0]
    else:
        told = clamp.metadata_props
        also = f"{told.get(SOURCE, '')} {told.get(OVERLOAD, '')}"
        made.metadata_props[ALSO] = "\n".join(filter(None, (made.metadata_props.get(ALSO), also)))
    for reader in readers(clamp.outputs[0]):
        reader.outputs[0].replace_all_uses_with(result)
        erase(reader)
    erase(clamp)
    return [made]


def _limits(clamp: ir.Node) -> tuple[float | None, float | None]:
    """The limits of a clamp, infinite where it has none; None where they are not constants."""
    if clamp.op_type == "Relu":
        return 0.0, np.inf
    given = [*clamp.inputs[1:], None, None]
    low, high = (
        default if value is None else number_of(value)
        for value, default in zip(given, (-np.inf, np.inf), strict=False)
    )
    return low, high
