"""Ready-made rewrites for support tables: each writes a match in other operators that compute the same.

A row lists its rewrites (:class:`torchquilt.support.table.SupportRow`). Importing this module does not
import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torchquilt.graph.node_values import STORED_FOR, arguments_of, is_empty, overload_name
from torchquilt.support import operators as ops
from torchquilt.support.call_facts import bounds, is_split, padding_of, split_dimension
from torchquilt.support.pattern import Match

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


# Importing this module must not import torch, so these take operators of ATen by their names.


def _aten(overload: str) -> Any:
    import torch

    packet, _, name = overload.partition(".")
    return getattr(getattr(torch.ops.aten, packet), name)


def _write_as(node: Node, overload: str, *args: Any) -> None:
    from torchquilt.graph.edits import write_as

    write_as(node, _aten(overload), *args)


def _write_as_another_shape(node: Node, overload: str, *args: Any) -> None:
    from torchquilt.graph.edits import write_as_another_shape

    write_as_another_shape(node, _aten(overload), *args)


def _call_before(model: GraphModule, node: Node, overload: str, *args: Any) -> Node:
    from torchquilt.graph.edits import call_before

    return call_before(model, node, _aten(overload), *args)


def _call_behind(model: GraphModule, node: Node, overload: str, *args: Any) -> Node:
    from torchquilt.graph.edits import call_behind

    return call_behind(model, node, _aten(overload), *args)


def _arguments(node: Node) -> tuple[Any, ...]:
    arguments: Any = node.args
    return tuple(arguments)


def _shape(node: Node) -> list[Any]:
    return list(node.meta["val"].shape)


def _new_shape(node: Node) -> list[int]:
    """The shape of a node as an argument of reshape, with -1 for a dynamic size."""
    return [size if isinstance(size, int) else -1 for size in _shape(node)]


def parts_as_slices(model: GraphModule, is_asked: Callable[[Node], bool]) -> GraphModule:
    """Write as slices what is split, and join without empty tensors.

    For backends whose kernels of integers slice and join, and neither split nor take empty tensors.

    Args:
        model: changed in place, and returned.
        is_asked: whether anything is to be quantized at a node; the others stay as they are.
    """
    for node in list(model.graph.nodes):
        if is_split(node) and is_asked(node):
            split_as_slices(model, node)
        elif joins_empty(node) and is_asked(node):
            without_empty(model, node)
    return model


def split_as_slices(model: GraphModule, node: Node) -> None:
    """Write the parts of a split (:func:`torchquilt.support.call_facts.is_split`) as slices."""
    import operator

    from torchquilt.graph.edits import erase_unused

    data, dim = _arguments(node)[0], split_dimension(node)
    parts = node.meta["val"]
    if any(user.target is not operator.getitem for user in node.users):
        return
    sizes = [part.shape[dim] if part.dim() == len(_shape(data)) else 1 for part in parts]
    if not all(isinstance(size, int) for size in (*sizes, *_shape(data))):
        return
    for user in list(node.users):
        index = _arguments(user)[1]
        start = sum(sizes[:index])
        bounds_of_part = (data, dim, start, start + sizes[index])
        if parts[index].dim() == len(_shape(data)):
            _write_as(user, "slice.Tensor", *bounds_of_part)
        else:  # unbind returns its parts without the dimension
            part = _call_before(model, user, "slice.Tensor", *bounds_of_part)
            _write_as(user, "reshape.default", part, _shape(user))
    erase_unused(node)


def joins_empty(node: Node) -> bool:
    """Whether a node is a ``cat`` of empty tensors and others."""
    if overload_name(node) not in ops.CAT.overloads:
        return False
    empty = [is_empty(tensor) for tensor in _arguments(node)[0]]
    return any(empty) and not all(empty)


def without_empty(_: GraphModule, node: Node) -> None:
    """Leave the empty tensors out of a ``cat`` (see :func:`joins_empty`)."""
    tensors = [tensor for tensor in _arguments(node)[0] if not is_empty(tensor)]
    dtype = node.meta["val"].dtype
    if any(tensor.meta["val"].dtype != dtype for tensor in tensors):
        return
    if len(tensors) == 1:
        _write_as(node, "clone.default", tensors[0])
    else:
        _write_as(node, "cat.default", tensors, arguments_of(node)["dim"])


def as_hardtanh(_: GraphModule, match: Match) -> None:
    """Write ``clamp(x, a, b)``, behind the anchor, as ``hardtanh(x, a, b)``."""
    clamp = match.output
    if clamp is not match.anchor:
        _write_as(clamp, "hardtanh.default", _arguments(clamp)[0], *bounds(clamp))


def as_reshape(_: GraphModule, match: Match) -> None:
    """Write a view of any kind as a reshape."""
    node = match.anchor
    _write_as(node, "reshape.default", _arguments(node)[0], _new_shape(node))


def as_permute(_: GraphModule, match: Match) -> None:
    """Write a transposition of any kind as a permute.

    The order of dimensions is read off a tensor whose sizes are all different.
    """
    import torch

    node = match.anchor
    data, *options = _arguments(node)
    turned: Any = node.target
    sizes = [*range(2, 2 + len(_shape(data)))]
    result = turned(torch.empty(sizes, device="meta"), *options, **node.kwargs)
    _write_as(node, "permute.default", data, [size - 2 for size in result.shape])


def as_clone(_: GraphModule, match: Match) -> None:
    """Write ``detach(x)`` as ``clone(x)``."""
    node = match.anchor
    _write_as(node, "clone.default", _arguments(node)[0])


def as_slice(_: GraphModule, match: Match) -> None:
    """Write ``narrow(x, d, a, n)`` as ``slice(x, d, a, a + n)``."""
    node = match.anchor
    named = arguments_of(node)
    data, dim, start = _arguments(node)[0], named["dim"], named["start"]
    start += _shape(data)[dim] if start < 0 else 0
    _write_as(node, "slice.Tensor", data, dim, start, start + named["length"])


def as_permuted_parts(model: GraphModule, match: Match) -> None:
    """Write a shuffle of pixels or channels as ``reshape(permute(reshape(x)))``."""
    node = match.anchor
    data, factor = _arguments(node)
    apart, order = _SHUFFLES[match.pattern.working.name](*_shape(data), factor)
    parts = _call_before(model, node, "reshape.default", data, apart)
    turned = _call_before(model, node, "permute.default", parts, order)
    _write_as(node, "reshape.default", turned, _shape(node))


def _apart_for_pixels(n: int, c: int, h: int, w: int, r: int) -> tuple[list[int], list[int]]:
    return [n, c // (r * r), r, r, h, w], [0, 1, 4, 2, 5, 3]


def _apart_for_channels(n: int, c: int, h: int, w: int, r: int) -> tuple[list[int], list[int]]:
    return [n, c, h // r, r, w // r, r], [0, 1, 3, 5, 2, 4]


def _apart_for_groups(n: int, c: int, h: int, w: int, groups: int) -> tuple[list[int], list[int]]:
    return [n, groups, c // groups, h, w], [0, 2, 1, 3, 4]


_SHUFFLES: dict[str, Callable[..., tuple[list[int], list[int]]]] = {
    "pixel_shuffle": _apart_for_pixels,
    "pixel_unshuffle": _apart_for_channels,
    "channel_shuffle": _apart_for_groups,
}


def as_plain_reshape(model: GraphModule, match: Match) -> None:
    """Let a reshape infer its dynamic size; leave one whose sizes are all numbers."""
    node = match.anchor
    told = _arguments(node)[1] if len(_arguments(node)) > 1 else ()
    sizes = told if isinstance(told, (list, tuple)) else ()
    if any(not isinstance(size, int) for size in sizes) or (not sizes and -1 in _new_shape(node)):
        as_reshape(model, match)


def as_linear(model: GraphModule, match: Match) -> None:
    """Write ``addmm(b, x, w)`` and ``matmul(x, w)`` as ``linear(x, w.T, b)``, for a constant ``w``."""
    node = match.anchor
    (data,), (weight,) = match.inputs("input_activation"), match.inputs("weight")
    turned = _call_before(model, node, "permute.default", weight, [1, 0])
    _write_as(node, "linear.default", data, turned, *match.inputs("bias"))


def as_linear_of_pixels(model: GraphModule, match: Match) -> None:
    """Write a pointwise ``conv2d(x, w, b)`` as ``permute(linear(permute(x), w, b))``, linear over channels.

    So dynamic parameters are found for each pixel.
    """
    node = match.anchor
    (data,), (weight,) = match.inputs("input_activation"), match.inputs("weight")
    pixels = _call_before(model, node, "permute.default", data, [0, 2, 3, 1])
    matrix = _call_before(model, node, "reshape.default", weight, _shape(weight)[:2])
    _write_as_another_shape(node, "linear.default", pixels, matrix, *match.inputs("bias"))
    _call_behind(model, node, "permute.default", [0, 3, 1, 2])


def with_stored_bias(model: GraphModule, match: Match) -> None:
    """Store a bias that is computed or broadcast, with one number for each channel."""
    from torchquilt.graph.constant_folding import constant_value
    from torchquilt.graph.edits import free_name, read_tensor

    node = match.anchor
    for bias in match.inputs("bias"):
        if _is_stored(bias, node):
            continue
        value = constant_value(model, bias).reshape(-1).expand(_channels(node)).clone()
        name = free_name(model, f"{bias.target if bias.op == 'get_attr' else bias.name}_{node.name}")
        read = read_tensor(model, name, value, before=node)
        read.meta[STORED_FOR] = bias
        node.replace_input_with(bias, read)


def with_own_bias(model: GraphModule, match: Match) -> None:
    """Store a bias as :func:`with_stored_bias` does, and copy one that several operators share.

    For backends that quantize a bias once, with a scale that depends on the input of its operator.
    """
    from torchquilt.graph.edits import own_copy

    shared = [bias for bias in match.inputs("bias") if _is_stored(bias, match.anchor) and len(bias.users) > 1]
    with_stored_bias(model, match)
    for bias in shared:
        own_copy(model, match.anchor, bias)


def _is_stored(bias: Node, node: Node) -> bool:
    """Whether a bias is stored, with one number for each output channel of its operator."""
    return bias.op == "get_attr" and _shape(bias) == [_channels(node)]


def _channels(node: Node) -> Any:
    return _shape(node)[-1 if str(node.target) == "aten.linear.default" else 1]


def as_sub(_: GraphModule, match: Match) -> None:
    """Write ``rsub(a, b)`` as ``sub(b, a)``."""
    node = match.anchor
    _write_as(node, "sub.Tensor", _arguments(node)[1], _arguments(node)[0])


def as_mul(model: GraphModule, match: Match) -> None:
    """Write ``div(x, c)`` as ``mul(x, 1 / c)``, for a number or a constant ``c``."""
    from torchquilt.graph.constant_folding import constant_value

    node = match.anchor
    data, divisor = _arguments(node)
    if not isinstance(divisor, (int, float)):
        divisor = constant_value(model, divisor).item()
    _write_as(node, "mul.Tensor", data, 1.0 / divisor)


def as_sum_with_opposite(_: GraphModule, match: Match) -> None:
    """Write ``sub(x, c)`` as ``add(x, -c)``, for a number ``c``."""
    node = match.anchor
    data, number = _arguments(node)[:2]
    _write_as(node, "add.Tensor", data, -number)


def as_product_with_sigmoid(model: GraphModule, match: Match) -> None:
    """Write ``silu(x)`` as ``mul(x, sigmoid(x))``."""
    node = match.anchor
    data = _arguments(node)[0]
    _write_as(node, "mul.Tensor", data, _call_before(model, node, "sigmoid.default", data))


def as_global_average(model: GraphModule, match: Match) -> None:
    """Write ``mean(x, [2, 3])`` as ``adaptive_avg_pool2d(x, 1)``, or as ``reshape`` of that."""
    node = match.anchor
    data, sizes = _arguments(node)[0], _new_shape(node)
    if len(sizes) == 4:
        _write_as(node, "adaptive_avg_pool2d.default", data, [1, 1])
    else:
        pooled = _call_before(model, node, "adaptive_avg_pool2d.default", data, [1, 1])
        _write_as(node, "reshape.default", pooled, sizes)


def as_mean_of_image(model: GraphModule, match: Match) -> None:
    """Write ``mean(x, [2, 3])`` as ``reshape(mean(x, [2, 3], keepdim=True))``."""
    node = match.anchor
    data = _arguments(node)[0]
    sizes = _new_shape(node)
    if len(sizes) < 4:
        kept = _call_before(model, node, "mean.dim", data, [2, 3], True)
        _write_as(node, "reshape.default", kept, sizes)


def as_slice_of_one(model: GraphModule, match: Match) -> None:
    """Write ``select(x, d, i)`` as ``reshape(slice(x, d, i, i + 1))``."""
    node = match.anchor
    data, dim, index = _arguments(node)
    dim, index = dim % len(_shape(data)), index % _shape(data)[dim]
    part = _call_before(model, node, "slice.Tensor", data, dim, index, index + 1)
    _write_as(node, "reshape.default", part, _new_shape(node))


def as_cat_and_reshape(model: GraphModule, match: Match) -> None:
    """Write ``stack(xs, d)`` as ``reshape(cat(xs, d))``.

    If the new dimension is the last: as ``permute(reshape(cat(xs, 0)))``, which moves it to the end.
    """
    node = match.anchor
    dim = arguments_of(node)["dim"] % len(_shape(node))
    _write_along_new_dimension(model, node, dim)


def _write_along_new_dimension(model: GraphModule, node: Node, dim: int) -> None:
    tensors = list(_arguments(node)[0])
    if dim < len(_shape(tensors[0])):
        joined = _call_before(model, node, "cat.default", tensors, dim)
        _write_as(node, "reshape.default", joined, _new_shape(node))
        return
    joined = _call_before(model, node, "cat.default", tensors, 0)
    shape = [len(tensors), *_new_shape(tensors[0])]
    rows = _call_before(model, node, "reshape.default", joined, shape)
    order = [*range(1, len(shape)), 0]
    if len(_shape(node)) == len(shape):
        _write_as(node, "permute.default", rows, order)
    else:
        turned = _call_before(model, node, "permute.default", rows, order)
        _write_as(node, "reshape.default", turned, _new_shape(node))


def as_cat(model: GraphModule, match: Match) -> None:
    """Write ``hstack(xs)`` and its relatives as ``cat(xs, d)``; the tensors may lack dimension ``d``."""
    node = match.anchor
    tensors = list(_arguments(node)[0])
    rank = len(_shape(tensors[0]))
    dim = {"hstack": min(rank - 1, 1), "vstack": 0, "dstack": 2, "column_stack": 1}[
        match.pattern.working.name
    ]
    if match.pattern.working.name == "vstack" and rank == 1:
        _write_along_new_dimension(model, node, 0)
    elif dim < rank:
        _write_as(node, "cat.default", tensors, dim)
    else:
        _write_along_new_dimension(model, node, rank)


def as_cat_with_zeros(model: GraphModule, match: Match) -> None:
    """Write ``pad(x, sizes)`` with zeros as ``cat([zeros, x, zeros], d)``, for each padded dimension."""
    node = match.anchor
    data = _arguments(node)[0]
    padded = [(dim, sizes) for dim, sizes in padding_of(node).items() if any(sizes)]
    for dim, sizes in padded:
        before, after = (_zeros(model, node, data, dim, size) for size in sizes)
        parts = [*before, data, *after]
        data = _call_before(model, node, "cat.default", parts, dim)
    _write_as(node, "reshape.default", data, _new_shape(node))


def _zeros(model: GraphModule, node: Node, data: Node, dim: int, size: int) -> list[Node]:
    import torch

    from torchquilt.graph.edits import free_name, read_tensor

    if not size:
        return []
    shape = _shape(data)
    shape[dim] = size
    name = free_name(model, f"{node.name}_zeros")
    return [read_tensor(model, name, torch.zeros(shape, dtype=data.meta["val"].dtype), before=node)]
