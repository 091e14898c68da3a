"""The form of a quantized program that OpenVINO computes in integers.

OpenVINO knows integers by a FakeQuantize in front of an operator, and by constants that are converted,
subtracted from and multiplied. What changes nothing is in its way, and costs a kernel of its own:

- A quantize of values that are steps of its own scale already (behind a reshape, say) is dropped, with its
  dequantize.
- A weight that is quantized when the model runs is stored quantized.
- A mish that is quantized, and is not computed in the kernel of a convolution, is written as what it
  computes: OpenVINO does not compile it.
- A change of strides alone is dropped. torch's mean over a ``channels_last`` image ends with one.
- The padding of an average that counts it is written as a pad. OpenVINO pads integers with 0 there, even if
  their zero point is another. In ceil mode it counts other elements than torch where a window hangs over.
- An average of integers that nothing quantizes is read through a maximum with minus infinity. In front of a
  product OpenVINO rounds it to 8 bits otherwise.
- A quantize whose integers are read by more than dequantizes (a program that returns integers) is written as
  what it computes. So are those that OpenVINO refuses, and those that it would join with a clamp.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch

from torchquilt.backend import (
    OPERATORS,
    QDQ,
    arguments_of,
    copied_graph,
    dequantize_of,
    erase_unused,
    is_conversion,
    is_dequantize,
    is_quantize,
    overload_name,
    quantize_of,
    with_graph,
)
from torchquilt.backend import operators as ops

if TYPE_CHECKING:
    from torch.export import ExportedProgram, ExportGraphSignature
    from torch.fx import Graph, GraphModule, Node

#: Operators whose result holds elements of their input, and maybe zeros, which every scale has.
_KEEPING = frozenset(
    {
        *(overload for op in OPERATORS if op.moves_data for overload in op.overloads),
        *ops.RELU.overloads,
        "aten.split.Tensor",
        "aten.split_with_sizes.default",
        "aten.chunk.default",
        "aten.unbind.int",
        "aten.upsample_nearest1d.vec",
        "aten.upsample_nearest2d.vec",
        "aten.upsample_nearest3d.vec",
        "aten.index.Tensor",
        "aten.amax.default",
        "aten.amin.default",
    }
) - {*ops.ROLL.overloads, *ops.REPEAT.overloads, *ops.PAD.overloads}  # OpenVINO has no integers behind these
_AVERAGING = frozenset((*ops.AVG_POOL1D.overloads, *ops.AVG_POOL2D.overloads, *ops.AVG_POOL3D.overloads))
#: Operators that clip at bounds which are no steps of a scale.
_CLIPPING = frozenset((*ops.CLAMP.overloads, *ops.HARDTANH.overloads, *ops.RELU6.overloads))


def integer_form(program: ExportedProgram, in_floats: Collection[str] = ()) -> ExportedProgram:
    """The program without conversions that change nothing.

    Args:
        program: it is not changed.
        in_floats: names of quantizes that are written in operators of floats.
    """
    graph, copies = copied_graph(program.graph)
    signature = copy.deepcopy(program.graph_signature)
    for node in [*program.graph.nodes]:
        quantize = copies.get(node)
        told = None if quantize is None else quantize_of(quantize)
        if quantize is None or told is None or not told.has_one_scale:
            continue
        if not all(map(is_dequantize, quantize.users)):
            _replace(quantize, _written_out(graph, quantize, told), signature)
        elif _has_steps_of(told.input, told.parameters):
            _replace_readers(quantize, told.input, signature)
        elif node.name in in_floats or _is_clipped(quantize):
            _replace_readers(quantize, _written_in_floats(graph, quantize, told), signature)
    _write_out_mish(graph)
    _write_out_counted_padding(graph)
    _keep_averages_in_float(graph)
    return with_graph(program, graph, signature)


def _write_out_mish(graph: Graph) -> None:
    aten = torch.ops.aten
    for node in [one for one in graph.nodes if overload_name(one) == "aten.mish.default"]:
        value = node.all_input_nodes[0]
        if overload_name(value).startswith("aten.conv") or not any(map(is_quantize, node.users)):
            continue
        with graph.inserting_before(node):
            grown = graph.call_function(aten.softplus.default, (value,))
            bent = graph.call_function(aten.tanh.default, (grown,))
            made = graph.call_function(aten.mul.Tensor, (value, bent))
        for one in (grown, bent, made):
            one.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        graph.erase_node(node)
        made.name = node.name  # by which its origin is known


def _write_out_counted_padding(graph: Graph) -> None:
    """Pad in front of each average that counts its padding, where OpenVINO would count it otherwise."""
    for node in [one for one in graph.nodes if overload_name(one) in _AVERAGING]:
        given = arguments_of(node)
        padding = _for_each(given.get("padding", 0), len(given["kernel_size"]))
        if not any(padding) or not given.get("count_include_pad", True):
            continue
        if _has_ceil_mode(node):
            is_counted = all(isinstance(size, int) for size in node.meta["val"].shape[-len(padding) :])
        else:
            is_counted = not _has_zero_point_zero(node.all_input_nodes[0])
        if is_counted:
            _pad_before(graph, node, given, padding)


def _keep_averages_in_float(graph: Graph) -> None:
    """Read averages of integers, which nothing quantizes, through a maximum with minus infinity."""
    aten = torch.ops.aten
    for node in [one for one in graph.nodes if overload_name(one) in _AVERAGING]:
        if not _is_of_integers(node.all_input_nodes[0]):
            continue
        readers = [one for one in node.users if not is_quantize(one) and one.op != "output"]
        if not readers:
            continue
        with graph.inserting_after(node):
            least = graph.call_function(aten.full.default, ([], -math.inf))
        with graph.inserting_after(least):
            kept = graph.call_function(aten.maximum.default, (node, least))
        least.meta = {**node.meta, "val": node.meta["val"].new_empty([])}
        kept.meta = dict(node.meta)
        for reader in readers:
            reader.replace_input_with(node, kept)


def _is_of_integers(node: Node) -> bool:
    """Whether a tensor is dequantized, or has the elements of one that is."""
    return is_dequantize(node) or (
        overload_name(node) in _KEEPING and any(map(_is_of_integers, node.all_input_nodes))
    )


def _pad_before(graph: Graph, node: Node, given: dict[str, Any], padding: list[int]) -> None:
    """Replace an average by one of a padded tensor; the last node takes its name."""
    aten = torch.ops.aten
    value, found = node.all_input_nodes[0], node.meta["val"]
    zeros = [number for one in reversed(padding) for number in (one, one)]
    with graph.inserting_before(node):
        padded = graph.call_function(aten.constant_pad_nd.default, (value, zeros, 0.0))
        padded.meta = {**node.meta, "val": _padded(value.meta["val"], padding)}
        arguments = (*{**given, "self": padded, "padding": [0] * len(padding)}.values(),)
        made = graph.call_function(cast("Any", node.target), arguments)
        made.meta = dict(node.meta)
        if _has_ceil_mode(node):
            # torch drops a window that begins in the padding, which is no padding any more.
            for dimension in range(-len(padding), 0):
                made = graph.call_function(aten.slice.Tensor, (made, dimension, 0, found.shape[dimension]))
                made.meta = dict(node.meta)
    node.replace_all_uses_with(made)
    graph.erase_node(node)
    made.name = node.name  # by which its origin is known


def _padded(value: torch.Tensor, padding: list[int]) -> torch.Tensor:
    """The fake tensor of a padded one. To pad the fake tensor itself would fix dynamic sizes."""
    unpadded = value.dim() - len(padding)
    sizes = zip(value.shape[unpadded:], padding, strict=True)
    return value.new_empty([*value.shape[:unpadded], *(size + 2 * number for size, number in sizes)])


def _for_each(sizes: Any, count: int) -> list[int]:
    """Sizes for each of so many dimensions, of which one may stand for all."""
    listed = [*sizes] if isinstance(sizes, (list, tuple)) else [sizes]
    return listed * count if len(listed) == 1 else listed


def _has_zero_point_zero(node: Node) -> bool:
    """Whether a tensor consists of integers that stand for floats by a scale alone."""
    told = dequantize_of(node)
    if told is not None:
        return told.has_one_scale and not told.zero_point
    return overload_name(node) in _KEEPING and all(
        _has_zero_point_zero(one) for one in node.all_input_nodes if _is_float(one)
    )


def _has_steps_of(node: Node, parameters: tuple[Any, ...]) -> bool:
    """Whether each element of a tensor is a step of a scale, within its range."""
    told = dequantize_of(node)
    if told is not None:
        return told.has_one_scale and told.parameters == parameters
    if node.target is operator.getitem:
        return _has_steps_of(node.all_input_nodes[0], parameters)
    if overload_name(node) not in _KEEPING or _has_ceil_mode(node):
        return False
    read = [one for one in node.all_input_nodes if _is_float(one)]
    return bool(read) and all(_has_steps_of(one, parameters) for one in read)


def _is_clipped(quantize: Node) -> bool:
    """Whether the values of a quantize are clipped, and not quantized behind that.

    OpenVINO makes one FakeQuantize of both, with as many steps between the bounds as there were in the whole
    range: other values than the model has.
    """
    readers = (user for dequantize in quantize.users for user in dequantize.users)
    clips = [one for one in readers if overload_name(one) in _CLIPPING]
    return any(not one.users or not all(map(is_quantize, one.users)) for one in clips)


def _has_ceil_mode(node: Node) -> bool:
    """Whether a node pools with windows that hang over the end, which OpenVINO does in floats."""
    return bool(arguments_of(node).get("ceil_mode"))


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else [value]
    return any(isinstance(one, torch.Tensor) and one.is_floating_point() for one in values)


def _replace_readers(quantize: Node, value: Node, signature: ExportGraphSignature) -> None:
    """Let who reads a dequantize of a quantize, or returns it, have a value instead."""
    for dequantize in [*quantize.users]:
        _replace(dequantize, value, signature)
    erase_unused(quantize)


def _replace(node: Node, value: Node, signature: ExportGraphSignature) -> None:
    """Let who reads a node, or returns it, have a value instead."""
    for spec in signature.output_specs:
        argument: Any = spec.arg
        if argument.name == node.name:
            argument.name = value.name
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)


def _written_in_floats(graph: Graph, quantize: Node, told: QDQ) -> Node:
    """A quantize and a dequantize in operators of floats that compute the same."""
    low, high = told.quant_min - told.zero_point, told.quant_max - told.zero_point
    return _called(graph, quantize, told, ("mul", 1 / told.scale), ("round",), ("clamp", low, high),
                   ("mul", told.scale))  # fmt: skip


def _written_out(graph: Graph, quantize: Node, told: QDQ) -> Node:
    """A quantize in operators of floats that compute the same, and return integers."""
    return _called(graph, quantize, told, ("mul", 1 / told.scale), ("round",), ("add", told.zero_point),
                   ("clamp", told.quant_min, told.quant_max), ("to", told.dtype))  # fmt: skip


def _called(graph: Graph, quantize: Node, told: QDQ, *calls: tuple[Any, ...]) -> Node:
    """Operators that are called one behind the other, in front of a quantize and in its service."""
    aten = torch.ops.aten
    targets = {
        "mul": aten.mul.Tensor,
        "add": aten.add.Tensor,
        "round": aten.round.default,
        "clamp": aten.clamp.default,
        "to": aten._to_copy.default,
    }
    value = told.input
    with graph.inserting_before(quantize):
        for name, *arguments in calls:
            given: dict[str, Any] = {"dtype": arguments.pop()} if name == "to" else {}
            value = graph.call_function(targets[name], (value, *arguments), given)
            value.meta = {**quantize.meta, "val": told.input.meta["val"]}
    value.meta["val"] = quantize.meta["val"] if calls[-1][0] == "to" else told.input.meta["val"]
    return value


# --- The module that is converted ---------------------------------------------------------------------------


def prepare_module(model: GraphModule) -> None:
    """Store weights quantized, and drop changes of strides; changes the module."""
    for node in [*model.graph.nodes]:
        if is_quantize(node) and _is_stored(node):
            _store_quantized(model, node)
        elif overload_name(node) == "aten.as_strided.default" and _changes_strides_alone(node):
            node.replace_all_uses_with(node.all_input_nodes[0])
    model.graph.eliminate_dead_code()


def _changes_strides_alone(node: Node) -> bool:
    """Whether each element is where it was: dimensions of one element may have any stride."""
    before, given = node.all_input_nodes[0].meta["val"], arguments_of(node)
    sizes, strides = given["size"], given["stride"]
    offset = given.get("storage_offset")
    return (
        list(sizes) == list(before.shape)
        and (offset is None or offset == before.storage_offset())
        and all(
            size == 1 or one == other
            for size, one, other in zip(sizes, strides, before.stride(), strict=True)
        )
    )


def _is_stored(node: Node) -> bool:
    return all(one.op == "get_attr" for one in node.all_input_nodes)


def _store_quantized(model: GraphModule, quantize: Node) -> None:
    """Read the integers of a stored tensor instead of quantizing it."""
    values = {node: _attribute(model, str(node.target)) for node in quantize.all_input_nodes}

    def known(value: Any) -> Any:
        return values.get(value, value) if isinstance(value, torch.fx.Node) else value

    target: Any = quantize.target
    with torch.no_grad():
        integers = target(
            *map(known, quantize.args), **{key: known(one) for key, one in quantize.kwargs.items()}
        )
    name = f"{quantize.name}_stored"
    model.register_buffer(name, integers)
    with quantize.graph.inserting_before(quantize):
        read = quantize.graph.get_attr(name)
    read.meta = dict(quantize.meta)
    quantize.replace_all_uses_with(read)
    quantize.graph.erase_node(quantize)


def _attribute(model: GraphModule, path: str) -> Any:
    value: Any = model
    for name in path.split("."):
        value = getattr(value, name)
    return value


def quantizes_of(program: ExportedProgram) -> Iterator[Node]:
    """The quantizes of a program whose scale is known, in order."""
    for node in program.graph.nodes:
        told = quantize_of(node)
        if told is not None and told.has_one_scale and not is_conversion(told.input):
            yield node
