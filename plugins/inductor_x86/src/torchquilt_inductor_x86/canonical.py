"""The form of a program in which Inductor finds what it has kernels of integers for.

Each pass is exact: the program computes what it computed before, bit for bit.

1. Activations are unsigned: ``q`` of int8 is written as ``q + 128`` of uint8.
2. Weights have a scale for each channel: one scale is repeated.
3. Convolutions of signals are written as those of images: torch takes the kernel of a packed weight for that
   of a signal, so it expects another length than the kernel for signals returns, and it fuses with that
   kernel what the kernel then refuses to run.
4. Data-movement operators move integers: a dequantize is put behind them, a quantize before them.
5. Linear layers read rows that lie one behind another: torch writes other linear layers as batched products,
   and finds few of those.
6. A linear layer whose weight alone is of integers calls the kernel that torch has for it.
7. Weights that no kernel of integers reads are dequantized once, and not in each run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torchquilt.backend import (
    OPERATORS,
    arguments_of,
    attribute,
    call_before,
    call_behind,
    dequantize_of,
    erase_unused,
    free_name,
    is_conversion,
    is_quantize,
    overload_name,
    quantize_of,
    read_tensor,
    take_origin,
    write_as,
    write_as_another_shape,
)
from torchquilt.backend import operators as ops
from torchquilt_inductor_x86 import torch_private as inductor

_SHIFT = 128
#: Inductor writes constants of so many elements into loops, and its kernel takes no scales from a loop.
_INLINED = 8
_LINEAR = ("aten.linear.default",)
_CONVOLUTIONS = ("aten.conv1d.default", "aten.conv1d.padding", "aten.conv2d.default", "aten.conv2d.padding")
_OF_SIGNALS = ("aten.conv1d.default", "aten.conv1d.padding")
#: Activations that the kernel for images computes.
_FUSED = frozenset(
    overload
    for operator in (ops.RELU, ops.RELU6, ops.HARDTANH, ops.HARDSWISH, ops.SILU)
    for overload in operator.overloads
)
_CONCATENATION = "aten.cat.default"
_TAKES_INTEGERS = (*_LINEAR, *_CONVOLUTIONS)
#: Operators that move data, and that were not seen to run on integers.
_FLOATS_ALONE = ("dropout", "max_pool1d", "max_pool3d")
#: Operators whose result has elements of their input alone, and that Inductor has for integers, too.
_MOVES = frozenset(
    overload
    for operator in OPERATORS
    if operator.moves_data and not operator.operands[0].is_list and operator.name not in _FLOATS_ALONE
    for overload in operator.overloads
)


def canonicalize(model: GraphModule, in_float: frozenset[str] = frozenset()) -> None:
    """Write a model in the form that Inductor finds its patterns in.

    Args:
        model: it is changed.
        in_float: names of operators that are to be computed in float.
    """
    passes: tuple[Callable[[GraphModule], None], ...] = (
        _with_unsigned_activations,
        _with_scales_of_channels,
        _signals_as_images,
        _moving_integers,
        _quantized_before_it_is_moved,
        lambda given: _with_contiguous_rows(given, in_float),
        lambda given: _with_weights_of_integers(given, in_float),
        lambda given: _with_float_weights(given, in_float),
    )
    for each in passes:
        each(model)
    model.graph.lint()
    model.recompile()


def _qd() -> Any:
    return torch.ops.quantized_decomposed


def _calls(model: GraphModule) -> list[Node]:
    return [node for node in model.graph.nodes if node.op == "call_function"]


# --- Unsigned activations -----------------------------------------------------------------------------------


def _with_unsigned_activations(model: GraphModule) -> None:
    for node in _calls(model):
        found = dequantize_of(node)
        if found is None or not _is_signed(found) or _is_stored(found.input):
            continue
        source = found.input
        made = quantize_of(source)
        if made is not None and made.parameters == found.parameters:
            unsigned = _unsigned_quantize(model, source)
        else:
            unsigned = _shifted(model, source, node)
        low, high = found.quant_min + _SHIFT, found.quant_max + _SHIFT
        zero_point = found.zero_point + _SHIFT
        node.args = (unsigned, found.scale, zero_point, low, high, torch.uint8)
        erase_unused(source)


def _is_signed(found: Any) -> bool:
    return found.dtype is torch.int8 and found.has_one_scale and str(found.granularity) == "per_tensor"


def _is_stored(node: Node) -> bool:
    return node.op == "get_attr"


def _unsigned_quantize(model: GraphModule, signed: Node) -> Node:
    """A quantize to uint8 beside one to int8, made once."""
    known = signed.meta.get("torchquilt_unsigned")
    if isinstance(known, Node):
        return known
    arguments: Any = signed.args
    data, scale, zero_point, low, high, _ = arguments
    with model.graph.inserting_after(signed):
        made = model.graph.call_function(
            _qd().quantize_per_tensor.default,
            (data, scale, zero_point + _SHIFT, low + _SHIFT, high + _SHIFT, torch.uint8),
        )
    _note(made, signed, torch.uint8)
    signed.meta["torchquilt_unsigned"] = made
    return made


def _shifted(model: GraphModule, signed: Node, reader: Node) -> Node:
    """Integers that come from elsewhere, shifted to uint8."""
    aten = torch.ops.aten
    wide = call_before(model, reader, aten._to_copy.default, signed)
    wide.kwargs = {"dtype": torch.int16}
    moved = call_before(model, reader, aten.add.Tensor, wide, _SHIFT)
    unsigned = call_before(model, reader, aten._to_copy.default, moved)
    unsigned.kwargs = {"dtype": torch.uint8}
    return unsigned


def _note(made: Node, served: Node, dtype: torch.dtype) -> None:
    take_origin(made, served)
    made.meta["val"] = served.meta["val"].to(dtype)


# --- Weights ------------------------------------------------------------------------------------------------


def _with_scales_of_channels(model: GraphModule) -> None:
    for node in _calls(model):
        found = dequantize_of(node)
        if found is None or str(found.granularity) != "per_tensor" or not found.has_one_scale:
            continue
        if not _is_stored(found.input) or not all(_reads_as_weight(user, node) for user in node.users):
            continue
        channels = node.meta["val"].shape[0]
        scales = torch.full((channels,), found.scale, dtype=torch.float32)
        zero_points = torch.full((channels,), found.zero_point, dtype=torch.int64)
        base = str(found.input.target)
        read = [
            read_tensor(model, free_name(model, f"{base}_{name}"), value, before=node)
            for name, value in (("scales", scales), ("zero_points", zero_points))
        ]
        node.target = _qd().dequantize_per_channel.default
        node.args = (found.input, *read, 0, found.quant_min, found.quant_max, found.dtype)
        node.kwargs = {}


def _reads_as_weight(user: Node, weight: Node) -> bool:
    return overload_name(user) in _TAKES_INTEGERS and user.args[1] is weight


def _with_float_weights(model: GraphModule, in_float: frozenset[str]) -> None:
    """Dequantize stored weights that no kernel of integers reads."""
    for node in _calls(model):
        found = dequantize_of(node)
        if found is None or not _is_stored(found.input):
            continue
        readers = [user for user in node.users if not _computes_with_integers(user, node, in_float)]
        if not readers:
            continue
        integers, scale, zero_point = (
            _value(model, one) for one in (found.input, found.scale, found.zero_point)
        )
        if integers is None:
            continue
        dequantize: Any = node.target
        value = dequantize(integers, scale, zero_point, *node.args[3:], **node.kwargs)
        name = free_name(model, f"{found.input.target}_in_float")
        read = read_tensor(model, name, value, before=node)
        for reader in readers:
            reader.replace_input_with(node, read)
        erase_unused(node)


def _with_weights_of_integers(model: GraphModule, in_float: frozenset[str]) -> None:
    """Write linear layers with float inputs and weights of integers as calls of the kernel for them."""
    for node in _calls(model):
        weight = node.args[1] if overload_name(node) in _LINEAR else None
        found = dequantize_of(weight) if isinstance(weight, Node) else None
        if found is None or node.name in in_float or not _takes_floats(node):
            continue
        if not _is_stored(found.input) or found.axis != 0 or found.dtype is not torch.int8:
            continue
        scale, zero_point = (_value(model, one) for one in (found.scale, found.zero_point))
        if bool(zero_point.any()) or scale.numel() <= _INLINED:
            continue
        _call_with_weights_of_integers(model, node, found.input, scale)


def _takes_floats(linear: Node) -> bool:
    """Whether the input of a linear layer is computed in bfloat16, and has rows of a known size.

    torch has the kernel for float32 as well, which is a hundred times as slow as a product of floats.
    """
    data = linear.args[0]
    assert isinstance(data, Node)
    value = data.meta["val"]
    unknown = sum(not isinstance(size, int) for size in value.shape[:-1])
    return dequantize_of(data) is None and value.dim() >= 2 and unknown <= 1 and value.dtype is torch.bfloat16


def _call_with_weights_of_integers(model: GraphModule, linear: Node, weight: Node, scale: Any) -> None:
    aten = torch.ops.aten
    data: Any
    data, _, *bias = linear.args
    value, returned = data.meta["val"], linear.meta["val"]
    name = free_name(model, f"{weight.target}_scales")
    scales = read_tensor(model, name, scale.to(value.dtype), before=linear)
    rows = call_before(model, linear, aten.reshape.default, data, [-1, value.shape[-1]])
    product = call_before(model, linear, aten._weight_int8pack_mm.default, rows, weight, scales)
    shape = [size if isinstance(size, int) else -1 for size in returned.shape]
    if bias and bias[0] is not None:
        shaped = call_before(model, linear, aten.reshape.default, product, shape)
        write_as(linear, aten.add.Tensor, shaped, bias[0])
    else:
        write_as(linear, aten.reshape.default, product, shape)


def _value(model: GraphModule, given: Any) -> Any:
    return attribute(model, str(given.target)) if isinstance(given, Node) else given


def _computes_with_integers(user: Node, weight: Node, in_float: frozenset[str]) -> bool:
    """Whether Inductor may have a kernel for a reader of a weight of integers."""
    if overload_name(user) == "aten.embedding.default":
        return True
    if not _reads_as_weight(user, weight) or user.name in in_float:
        return False
    activation = user.args[0]
    assert isinstance(activation, Node)
    found = dequantize_of(activation)
    is_read_as_integers = found is not None and found.dtype is torch.uint8
    return is_read_as_integers and str(getattr(found, "granularity", "")) == "per_tensor"


# --- Signals ------------------------------------------------------------------------------------------------


def _signals_as_images(model: GraphModule) -> None:
    aten = torch.ops.aten
    for node in _calls(model):
        weight = node.args[1] if overload_name(node) in _OF_SIGNALS else None
        found = dequantize_of(weight) if isinstance(weight, Node) else None
        if found is None or not _is_stored(found.input):
            continue
        assert isinstance(weight, Node)
        data, _, bias, *sizes = _all_arguments(node)
        image = call_before(model, node, aten.unsqueeze.default, data, 2)
        name = free_name(model, f"{found.input.target}_of_images")
        value = attribute(model, str(found.input.target)).unsqueeze(2)
        read = read_tensor(model, name, value, before=node)
        arguments: Any = (read, *weight.args[1:])
        wide = call_before(model, node, weight.target, *arguments)
        stride, padding, dilation, groups = sizes
        target = aten.conv2d.padding if isinstance(padding, str) else aten.conv2d.default
        padded = padding if isinstance(padding, str) else [0, *padding]
        write_as_another_shape(node, target, image, wide, bias, [1, *stride], padded, [1, *dilation], groups)
        call_behind(model, _last_fused(node), aten.squeeze.dim, 2)
        erase_unused(weight)


def _all_arguments(node: Node) -> list[Any]:
    return [*arguments_of(node).values()]


def _last_fused(convolution: Node) -> Node:
    """The activation that follows a convolution alone, if there is one, as one of images."""
    reader = next(iter(convolution.users), convolution)
    if len(convolution.users) != 1 or overload_name(reader) not in _FUSED:
        return convolution
    reader.meta["val"] = reader.meta["val"].unsqueeze(2)
    return reader


# --- Data movement ------------------------------------------------------------------------------------------


def _moving_integers(model: GraphModule) -> None:
    """Put a dequantize behind the operators that move what it returns."""
    for node in _calls(model):
        data = _moved(node)
        found = dequantize_of(data) if data is not None else None
        if data is None or found is None or not found.has_one_scale or _is_stored(found.input):
            continue
        integers = found.input
        floats = node.meta["val"]
        node.replace_input_with(data, integers)
        node.meta["val"] = floats.to(integers.meta["val"].dtype)
        _dequantize_behind(model, node, data, floats)
        erase_unused(data)


def _dequantize_behind(model: GraphModule, moved: Node, like: Node, floats: Any) -> None:
    readers = list(moved.users)
    with model.graph.inserting_after(moved):
        made = model.graph.call_function(like.target, (moved, *like.args[1:]), dict(like.kwargs))  # type: ignore[arg-type]
    take_origin(made, like)
    made.meta["val"] = floats
    for reader in readers:
        reader.replace_input_with(moved, made)


def _quantized_before_it_is_moved(model: GraphModule) -> None:
    """Put a quantize before the operators that move what it reads, where nothing else reads that."""
    waiting, made = [node for node in _calls(model) if is_quantize(node)], []
    while waiting:
        quantize = waiting.pop()
        if before := _lift_over_concatenation(model, quantize):
            waiting += before
            made += before
        elif _lift(model, quantize):
            waiting.append(quantize)
    for quantize in made:  # each stands for the operator that it now reads
        take_origin(quantize, quantize.all_input_nodes[0])


def _lift_over_concatenation(model: GraphModule, quantize: Node) -> list[Node]:
    """Quantize what is concatenated instead of the whole; returns those quantize operators, if any."""
    joined: Any = quantize.args[0]
    if overload_name(joined) != _CONCATENATION or not _has_one_scale(quantize):
        return []
    parts: Any = joined.args[0]
    is_read_alone = all(list(part.users) == [joined] and not _is_stored(part) for part in parts)
    if list(joined.users) != [quantize] or not is_read_alone or len({*parts}) < len(parts):
        return []
    dtype, arguments = quantize.meta["val"].dtype, quantize.args[1:]
    made = [call_before(model, joined, quantize.target, part, *arguments) for part in parts]
    joined.args = (made, *joined.args[1:])
    joined.meta["val"] = joined.meta["val"].to(dtype)
    quantize.replace_all_uses_with(joined)
    erase_unused(quantize)
    return made


def _has_one_scale(quantize: Node) -> bool:
    return len(quantize.all_input_nodes) == 1 and "per_tensor" in overload_name(quantize)


def _lift(model: GraphModule, quantize: Node) -> bool:
    """Put a quantize before the operator that it reads; returns whether that was possible."""
    moved = quantize.args[0]
    assert isinstance(moved, Node)
    data = _moved(moved)
    if data is None or not _has_one_scale(quantize) or list(moved.users) != [quantize] or _is_stored(data):
        return False
    if len(data.users) != 1:
        return False
    dtype = quantize.meta["val"].dtype
    quantize.replace_all_uses_with(moved)
    quantize.args = (data, *quantize.args[1:])
    moved.replace_input_with(data, quantize)
    moved.prepend(quantize)
    quantize.meta["val"] = data.meta["val"].to(dtype)
    moved.meta["val"] = moved.meta["val"].to(dtype)
    return True


def _with_contiguous_rows(model: GraphModule, in_float: frozenset[str]) -> None:
    """Copy the integers that a linear layer reads, where their rows do not lie one behind another."""
    for node in _calls(model):
        data = node.args[0] if overload_name(node) in _LINEAR else None
        found = dequantize_of(data) if isinstance(data, Node) else None
        if found is None or node.name in in_float:
            continue
        assert isinstance(data, Node)
        if not _lies_otherwise(data):
            continue
        rows = call_before(model, node, torch.ops.aten.clone.default, found.input)
        rows.kwargs = {"memory_format": torch.contiguous_format}
        rows.meta["val"] = found.input.meta["val"].contiguous()
        arguments: Any = (rows, *data.args[1:])
        node.replace_input_with(data, call_before(model, node, data.target, *arguments))
        erase_unused(data)


def _lies_otherwise(data: Node) -> bool:
    value = data.meta["val"]
    return value.dim() > 2 and not inductor.is_contiguous(value)


def _moved(node: Node) -> Node | None:
    """The tensor that a data-movement operator moves; None for another operator."""
    if overload_name(node) not in _MOVES or is_conversion(node):
        return None
    if not isinstance(node.meta.get("val"), torch.Tensor) or node.kwargs.get("dtype") is not None:
        return None
    data = node.args[0] if node.args else None
    if not isinstance(data, Node) or not isinstance(data.meta.get("val"), torch.Tensor):
        return None
    return data if node.meta["val"].dtype == data.meta["val"].dtype else None
