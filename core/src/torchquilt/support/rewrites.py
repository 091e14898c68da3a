"""Ready rewrites for support tables: a match in other operators, which compute the same.

A row names those that it needs (:class:`torchquilt.support.table.SupportRow`). Importing this module does not
import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torchquilt.graph.node_values import arguments_of, is_empty, overload_name
from torchquilt.support import operators as ops
from torchquilt.support.call_facts import bounds, padding_of, split_dimension
from torchquilt.support.pattern import Match

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


def _aten() -> Any:
    import torch

    return torch.ops.aten


def _arguments(node: Node) -> tuple[Any, ...]:
    arguments: Any = node.args
    return tuple(arguments)


def _shape(node: Node) -> list[Any]:
    return list(node.meta["val"].shape)


def _new_shape(node: Node) -> list[int]:
    """The shape of a node as a reshape is told it: what is not known ahead is inferred."""
    return [size if isinstance(size, int) else -1 for size in _shape(node)]


def split_as_slices(model: GraphModule, node: Node) -> None:
    """The parts of a split (:func:`torchquilt.support.call_facts.is_split`), as slices."""
    import operator

    from torchquilt.graph.edits import call_before, erase_unused, write_as

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
            write_as(user, _aten().slice.Tensor, *bounds_of_part)
        else:  # unbind returns its parts without the dimension
            part = call_before(model, user, _aten().slice.Tensor, *bounds_of_part)
            write_as(user, _aten().reshape.default, part, _shape(user))
    erase_unused(node)


def joins_empty(node: Node) -> bool:
    """Whether a node joins tensors some of which never have an element, and others may."""
    if overload_name(node) not in ops.CAT.overloads:
        return False
    empty = [is_empty(tensor) for tensor in _arguments(node)[0]]
    return any(empty) and not all(empty)


def without_empty(_: GraphModule, node: Node) -> None:
    """A ``cat`` of tensors some of which are empty (:func:`joins_empty`), of the others alone."""
    from torchquilt.graph.edits import write_as

    tensors = [tensor for tensor in _arguments(node)[0] if not is_empty(tensor)]
    dtype = node.meta["val"].dtype
    if any(tensor.meta["val"].dtype != dtype for tensor in tensors):
        return
    if len(tensors) == 1:
        write_as(node, _aten().clone.default, tensors[0])
    else:
        write_as(node, _aten().cat.default, tensors, arguments_of(node)["dim"])


def as_hardtanh(_: GraphModule, match: Match) -> None:
    """A clamp with two bounds, behind the operator that does the work, as the ``hardtanh`` that it is."""
    from torchquilt.graph.edits import write_as

    clamp = match.output
    if clamp is not match.anchor:
        write_as(clamp, _aten().hardtanh.default, _arguments(clamp)[0], *bounds(clamp))


def as_reshape(_: GraphModule, match: Match) -> None:
    """A view of any kind, as a reshape to the sizes that it has."""
    from torchquilt.graph.edits import write_as

    node = match.anchor
    write_as(node, _aten().reshape.default, _arguments(node)[0], _new_shape(node))


def as_permute(_: GraphModule, match: Match) -> None:
    """The order of dimensions is found by turning a tensor whose sizes are all different."""
    import torch

    from torchquilt.graph.edits import write_as

    node = match.anchor
    data, *options = _arguments(node)
    turned: Any = node.target
    sizes = [*range(2, 2 + len(_shape(data)))]
    result = turned(torch.empty(sizes, device="meta"), *options, **node.kwargs)
    write_as(node, _aten().permute.default, data, [size - 2 for size in result.shape])


def as_clone(_: GraphModule, match: Match) -> None:
    """A tensor without its history, as a copy."""
    from torchquilt.graph.edits import write_as

    node = match.anchor
    write_as(node, _aten().clone.default, _arguments(node)[0])


def as_slice(_: GraphModule, match: Match) -> None:
    """A narrowed tensor, as a slice."""
    from torchquilt.graph.edits import write_as

    node = match.anchor
    named = arguments_of(node)
    data, dim, start = _arguments(node)[0], named["dim"], named["start"]
    start += _shape(data)[dim] if start < 0 else 0
    write_as(node, _aten().slice.Tensor, data, dim, start, start + named["length"])


def as_permuted_parts(model: GraphModule, match: Match) -> None:
    """Dimensions are taken apart, put in another order, and put together."""
    from torchquilt.graph.edits import call_before, write_as

    node = match.anchor
    data, factor = _arguments(node)
    apart, order = _SHUFFLES[match.pattern.working.name](*_shape(data), factor)
    parts = call_before(model, node, _aten().reshape.default, data, apart)
    turned = call_before(model, node, _aten().permute.default, parts, order)
    write_as(node, _aten().reshape.default, turned, _shape(node))


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
    """A size that is not known ahead is inferred; sizes that are numbers stay as they are."""
    node = match.anchor
    told = _arguments(node)[1] if len(_arguments(node)) > 1 else ()
    sizes = told if isinstance(told, (list, tuple)) else ()
    if any(not isinstance(size, int) for size in sizes) or (not sizes and -1 in _new_shape(node)):
        as_reshape(model, match)


def as_linear(model: GraphModule, match: Match) -> None:
    """``addmm`` and ``matmul`` with a constant are linears whose weight lies the other way round."""
    from torchquilt.graph.edits import call_before, write_as

    node = match.anchor
    (data,), (weight,) = match.inputs("input_activation"), match.inputs("weight")
    turned = call_before(model, node, _aten().permute.default, weight, [1, 0])
    write_as(node, _aten().linear.default, data, turned, *match.inputs("bias"))


def as_linear_of_pixels(model: GraphModule, match: Match) -> None:
    """A pointwise convolution, as a linear over channels: dynamic parameters are those of each pixel."""
    from torchquilt.graph.edits import call_before, call_behind, write_as_another_shape

    node = match.anchor
    (data,), (weight,) = match.inputs("input_activation"), match.inputs("weight")
    pixels = call_before(model, node, _aten().permute.default, data, [0, 2, 3, 1])
    matrix = call_before(model, node, _aten().reshape.default, weight, _shape(weight)[:2])
    write_as_another_shape(node, _aten().linear.default, pixels, matrix, *match.inputs("bias"))
    call_behind(model, node, _aten().permute.default, [0, 3, 1, 2])


def with_stored_bias(model: GraphModule, match: Match) -> None:
    """A bias that is computed, or spread over the channels, is stored with a number for each of them."""
    from torchquilt.graph.constant_folding import constant_value
    from torchquilt.graph.edits import free_name, read_tensor

    node = match.anchor
    for bias in match.inputs("bias"):
        if _is_stored(bias, node):
            continue
        value = constant_value(model, bias).reshape(-1).expand(_channels(node)).clone()
        name = free_name(model, f"{bias.target if bias.op == 'get_attr' else bias.name}_{node.name}")
        node.replace_input_with(bias, read_tensor(model, name, value, before=node))


def with_own_bias(model: GraphModule, match: Match) -> None:
    """As :func:`with_stored_bias`, and an operator that shares its bias gets a copy.

    For backends that quantize a bias once, on a scale that depends on the input of its operator.
    """
    from torchquilt.graph.edits import own_copy

    shared = [bias for bias in match.inputs("bias") if _is_stored(bias, match.anchor) and len(bias.users) > 1]
    with_stored_bias(model, match)
    for bias in shared:
        own_copy(model, match.anchor, bias)


def _is_stored(bias: Node, node: Node) -> bool:
    """Whether a bias is stored with a number for each output channel of the operator that adds it."""
    return bias.op == "get_attr" and _shape(bias) == [_channels(node)]


def _channels(node: Node) -> Any:
    return _shape(node)[-1 if str(node.target) == "aten.linear.default" else 1]


def as_sub(_: GraphModule, match: Match) -> None:
    """A reversed subtraction, as a subtraction the other way round."""
    from torchquilt.graph.edits import write_as

    node = match.anchor
    write_as(node, _aten().sub.Tensor, _arguments(node)[1], _arguments(node)[0])


def as_mul(model: GraphModule, match: Match) -> None:
    """A quotient, as a product with the reciprocal."""
    from torchquilt.graph.constant_folding import constant_value
    from torchquilt.graph.edits import write_as

    node = match.anchor
    data, divisor = _arguments(node)
    if not isinstance(divisor, (int, float)):
        divisor = constant_value(model, divisor).item()
    write_as(node, _aten().mul.Tensor, data, 1.0 / divisor)


def as_mean_of_image(model: GraphModule, match: Match) -> None:
    """A mean over height and width that keeps the dimensions, and a reshape that drops them."""
    from torchquilt.graph.edits import call_before, write_as

    node = match.anchor
    data = _arguments(node)[0]
    sizes = _new_shape(node)
    if len(sizes) < 4:
        kept = call_before(model, node, _aten().mean.dim, data, [2, 3], True)
        write_as(node, _aten().reshape.default, kept, sizes)


def as_slice_of_one(model: GraphModule, match: Match) -> None:
    """One index of a dimension: a slice of one, without that dimension."""
    from torchquilt.graph.edits import call_before, write_as

    node = match.anchor
    data, dim, index = _arguments(node)
    dim, index = dim % len(_shape(data)), index % _shape(data)[dim]
    part = call_before(model, node, _aten().slice.Tensor, data, dim, index, index + 1)
    write_as(node, _aten().reshape.default, part, _new_shape(node))


def as_cat_and_reshape(model: GraphModule, match: Match) -> None:
    """Tensors along a new dimension: joined along the one behind it, and reshaped.

    Where no dimension is behind it, along the first one; then the new one is moved to the end.
    """
    node = match.anchor
    dim = arguments_of(node)["dim"] % len(_shape(node))
    _write_along_new_dimension(model, node, dim)


def _write_along_new_dimension(model: GraphModule, node: Node, dim: int) -> None:
    from torchquilt.graph.edits import call_before, write_as

    tensors = list(_arguments(node)[0])
    if dim < len(_shape(tensors[0])):
        joined = call_before(model, node, _aten().cat.default, tensors, dim)
        write_as(node, _aten().reshape.default, joined, _new_shape(node))
        return
    joined = call_before(model, node, _aten().cat.default, tensors, 0)
    shape = [len(tensors), *_new_shape(tensors[0])]
    rows = call_before(model, node, _aten().reshape.default, joined, shape)
    order = [*range(1, len(shape)), 0]
    if len(_shape(node)) == len(shape):
        write_as(node, _aten().permute.default, rows, order)
    else:
        turned = call_before(model, node, _aten().permute.default, rows, order)
        write_as(node, _aten().reshape.default, turned, _new_shape(node))


def as_cat(model: GraphModule, match: Match) -> None:
    """Tensors are joined along a dimension that they have, or else along a new one behind theirs."""
    from torchquilt.graph.edits import write_as

    node = match.anchor
    tensors = list(_arguments(node)[0])
    rank = len(_shape(tensors[0]))
    dim = {"hstack": min(rank - 1, 1), "vstack": 0, "dstack": 2, "column_stack": 1}[
        match.pattern.working.name
    ]
    if match.pattern.working.name == "vstack" and rank == 1:
        _write_along_new_dimension(model, node, 0)
    elif dim < rank:
        write_as(node, _aten().cat.default, tensors, dim)
    else:
        _write_along_new_dimension(model, node, rank)


def as_cat_with_zeros(model: GraphModule, match: Match) -> None:
    """Padding with zeros, as zeros that are joined to the tensor."""
    from torchquilt.graph.edits import call_before, write_as

    node = match.anchor
    data = _arguments(node)[0]
    padded = [(dim, sizes) for dim, sizes in padding_of(node).items() if any(sizes)]
    for dim, sizes in padded:
        before, after = (_zeros(model, node, data, dim, size) for size in sizes)
        parts = [*before, data, *after]
        data = call_before(model, node, _aten().cat.default, parts, dim)
    write_as(node, _aten().reshape.default, data, _new_shape(node))


def _zeros(model: GraphModule, node: Node, data: Node, dim: int, size: int) -> list[Node]:
    import torch

    from torchquilt.graph.edits import free_name, read_tensor

    if not size:
        return []
    shape = _shape(data)
    shape[dim] = size
    name = free_name(model, f"{node.name}_zeros")
    return [read_tensor(model, name, torch.zeros(shape, dtype=data.meta["val"].dtype), before=node)]
