"""The forms in which the delegate takes what is claimed: other operators that compute the same.

Each function writes one claim. It is looked up by the name of an operator of the claim's pattern. Importing
this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torchquilt.backend import arguments_of, is_empty, overload_name, tensor_of
from torchquilt.backend import operators as ops
from torchquilt_xnnpack.conditions import bounds, is_pointwise, is_split, padding_of, split_dimension

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

    from torchquilt import QuantizationConfig
    from torchquilt.backend import Claim, Intent, Operand, SupportTable


def write_claims(model: GraphModule, claims: tuple[Claim, ...]) -> None:
    """Write each claim in the form that the delegate takes. What is in none stays as it is.

    From the last operator to the first: a form may put a node behind its operator, and the claims of what
    reads the operator name the operator itself.
    """
    position = {node: number for number, node in enumerate(model.graph.nodes)}
    for claim in sorted(claims, key=lambda claim: position[claim.match.anchor], reverse=True):
        for name, write in _FORMS.items():
            if name in (claim.match.pattern.working.name, claim.match.pattern.operators[-1].name):
                write(model, claim)
        for bias in claim.match.inputs("bias"):
            _write_bias(model, claim, bias)


def may_need_other_forms(model: GraphModule, table: SupportTable, intent: Intent) -> bool:
    """Whether anything that could be claimed in a graph is in a form that the delegate does not take.

    In many models nothing is, and then it need not be known beforehand what will be claimed.
    """
    is_dynamic = any(rule.config is not None and _is_dynamic(rule.config) for rule in intent.rules)
    operators = {id(operator): operator for row in table.rows for operator in row.pattern.operators}
    written: set[str] = set()
    biases: dict[str, list[Operand]] = {}
    for operator in operators.values():
        if operator.name in _FORMS and (is_dynamic or operator.name not in _DYNAMIC_FORMS):
            written.update(operator.overloads)
        for overload in operator.overloads:
            found = biases.setdefault(overload, [])
            found += (operand for operand in operator.operands if operand.role == "bias")
    return any(
        (name := overload_name(node)) in written
        or any(_may_need_another_bias(node, operand) for operand in biases.get(name, ()))
        for node in model.graph.nodes
    )


def _is_dynamic(config: QuantizationConfig) -> bool:
    activation = config.input_activation
    return activation is not None and activation.is_dynamic


def _may_need_another_bias(node: Node, operand: Operand) -> bool:
    args, keywords = _arguments(node), node.kwargs
    bias: Any = args[operand.position] if len(args) > operand.position else keywords.get(operand.keyword)
    if bias is None:
        return False
    return not (_has_known_sizes(node, bias) and _is_stored(bias, node) and len(bias.users) == 1)


def _has_known_sizes(node: Node, bias: Any) -> bool:
    """Whether channels and bias can be compared. To compare a size that is not known ahead decides it."""
    result = tensor_of(node)
    added = tensor_of(bias) if hasattr(bias, "meta") else None
    if result is None or added is None or result.dim() < 2:
        return False
    return all(isinstance(size, int) for size in (*added.shape, _channels(node)))


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


def write_parts(model: GraphModule, intent: Intent) -> None:
    """Write what is split as slices, and what joins without its empty tensors, where something is asked.

    The delegate slices, also integers, and splits nothing; it takes no empty tensor.
    """
    for node in list(model.graph.nodes):
        write = _write_slices if is_split(node) else _write_without_empty if _joins_empty(node) else None
        rule = None if write is None else intent.rule_for(node)
        if write and rule is not None and rule.config is not None and intent.passes_filter(node):
            write(model, node)


def _write_slices(model: GraphModule, node: Node) -> None:
    import operator

    from torchquilt.backend import call_before, erase_unused, write_as

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


def _joins_empty(node: Node) -> bool:
    """Whether a node joins tensors some of which never have an element, and others may."""
    if overload_name(node) not in ops.CAT.overloads:
        return False
    empty = [is_empty(tensor) for tensor in _arguments(node)[0]]
    return any(empty) and not all(empty)


def _write_without_empty(_: GraphModule, node: Node) -> None:
    from torchquilt.backend import write_as

    tensors = [tensor for tensor in _arguments(node)[0] if not is_empty(tensor)]
    dtype = node.meta["val"].dtype
    if any(tensor.meta["val"].dtype != dtype for tensor in tensors):
        return
    if len(tensors) == 1:
        write_as(node, _aten().clone.default, tensors[0])
    else:
        write_as(node, _aten().cat.default, tensors, arguments_of(node)["dim"])


def _write_clamp(_: GraphModule, claim: Claim) -> None:
    """A clamp with two bounds is fused as a ``hardtanh``."""
    from torchquilt.backend import write_as

    clamp = claim.match.output
    if clamp is not claim.match.anchor:
        write_as(clamp, _aten().hardtanh.default, _arguments(clamp)[0], *bounds(clamp))


def _write_reshape(_: GraphModule, claim: Claim) -> None:
    from torchquilt.backend import write_as

    node = claim.match.anchor
    write_as(node, _aten().reshape.default, _arguments(node)[0], _new_shape(node))


def _write_permute(_: GraphModule, claim: Claim) -> None:
    """The order of dimensions is found by turning a tensor whose sizes are all different."""
    import torch

    from torchquilt.backend import write_as

    node = claim.match.anchor
    data, *options = _arguments(node)
    turned: Any = node.target
    sizes = [*range(2, 2 + len(_shape(data)))]
    result = turned(torch.empty(sizes, device="meta"), *options, **node.kwargs)
    write_as(node, _aten().permute.default, data, [size - 2 for size in result.shape])


def _write_clone(_: GraphModule, claim: Claim) -> None:
    from torchquilt.backend import write_as

    node = claim.match.anchor
    write_as(node, _aten().clone.default, _arguments(node)[0])


def _write_slice(_: GraphModule, claim: Claim) -> None:
    from torchquilt.backend import write_as

    node = claim.match.anchor
    named = arguments_of(node)
    data, dim, start = _arguments(node)[0], named["dim"], named["start"]
    start += _shape(data)[dim] if start < 0 else 0
    write_as(node, _aten().slice.Tensor, data, dim, start, start + named["length"])


def _write_shuffle(model: GraphModule, claim: Claim) -> None:
    """Dimensions are taken apart, put in another order, and put together."""
    from torchquilt.backend import call_before, write_as

    node = claim.match.anchor
    data, factor = _arguments(node)
    apart, order = _SHUFFLES[claim.match.pattern.working.name](*_shape(data), factor)
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


def _write_plain_reshape(model: GraphModule, claim: Claim) -> None:
    """A size that is not known ahead is inferred; sizes that are numbers stay as they are."""
    node = claim.match.anchor
    told = _arguments(node)[1] if len(_arguments(node)) > 1 else ()
    sizes = told if isinstance(told, (list, tuple)) else ()
    if any(not isinstance(size, int) for size in sizes) or (not sizes and -1 in _new_shape(node)):
        _write_reshape(model, claim)


def _write_product(model: GraphModule, claim: Claim) -> None:
    """``addmm`` and ``matmul`` with a constant are linears whose weight lies the other way round."""
    from torchquilt.backend import call_before, write_as

    node = claim.match.anchor
    (data,), (weight,) = claim.match.inputs("input_activation"), claim.match.inputs("weight")
    turned = call_before(model, node, _aten().permute.default, weight, [1, 0])
    write_as(node, _aten().linear.default, data, turned, *claim.match.inputs("bias"))


def _write_pointwise(model: GraphModule, claim: Claim) -> None:
    """A dynamic pointwise convolution is a linear over channels, with parameters for each pixel.

    That is how the delegate runs it, whatever it is told.
    """
    from torchquilt.backend import call_before, call_behind, write_as_another_shape

    node = claim.match.anchor
    if claim.row.mode != "dynamic" or not is_pointwise(node):
        return
    (data,), (weight,) = claim.match.inputs("input_activation"), claim.match.inputs("weight")
    pixels = call_before(model, node, _aten().permute.default, data, [0, 2, 3, 1])
    matrix = call_before(model, node, _aten().reshape.default, weight, _shape(weight)[:2])
    write_as_another_shape(node, _aten().linear.default, pixels, matrix, *claim.match.inputs("bias"))
    call_behind(model, node, _aten().permute.default, [0, 3, 1, 2])


def _write_bias(model: GraphModule, claim: Claim, bias: Node) -> None:
    """The delegate takes a stored bias with a number for each output channel, and quantizes it once.

    So what is computed, or is to be spread over the channels, is stored as it is used; and each static
    operator gets a bias of its own, since the scale depends on its input.
    """
    from torchquilt.backend import constant_value, free_name, own_copy, read_tensor

    node = claim.match.anchor
    if not _is_stored(bias, node):
        value = constant_value(model, bias).reshape(-1).expand(_channels(node)).clone()
        name = free_name(model, f"{bias.target if bias.op == 'get_attr' else bias.name}_{node.name}")
        node.replace_input_with(bias, read_tensor(model, name, value, before=node))
    elif claim.row.mode == "static" and len(bias.users) > 1:
        own_copy(model, node, bias)


def _is_stored(bias: Node, node: Node) -> bool:
    """Whether a bias is stored with a number for each output channel of the operator that adds it."""
    return bias.op == "get_attr" and _shape(bias) == [_channels(node)]


def _channels(node: Node) -> Any:
    return _shape(node)[-1 if str(node.target) == "aten.linear.default" else 1]


def _write_difference(_: GraphModule, claim: Claim) -> None:
    from torchquilt.backend import write_as

    node = claim.match.anchor
    write_as(node, _aten().sub.Tensor, _arguments(node)[1], _arguments(node)[0])


def _write_quotient(model: GraphModule, claim: Claim) -> None:
    from torchquilt.backend import constant_value, write_as

    node = claim.match.anchor
    data, divisor = _arguments(node)
    if not isinstance(divisor, (int, float)):
        divisor = constant_value(model, divisor).item()
    write_as(node, _aten().mul.Tensor, data, 1.0 / divisor)


def _write_mean(model: GraphModule, claim: Claim) -> None:
    """The delegate keeps the dimensions of a mean; so without them it is reshaped afterwards."""
    from torchquilt.backend import call_before, write_as

    node = claim.match.anchor
    data = _arguments(node)[0]
    sizes = _new_shape(node)
    if len(sizes) < 4:
        kept = call_before(model, node, _aten().mean.dim, data, [2, 3], True)
        write_as(node, _aten().reshape.default, kept, sizes)


def _write_select(model: GraphModule, claim: Claim) -> None:
    """One index of a dimension: a slice of one, without that dimension."""
    from torchquilt.backend import call_before, write_as

    node = claim.match.anchor
    data, dim, index = _arguments(node)
    dim, index = dim % len(_shape(data)), index % _shape(data)[dim]
    part = call_before(model, node, _aten().slice.Tensor, data, dim, index, index + 1)
    write_as(node, _aten().reshape.default, part, _new_shape(node))


def _write_stack(model: GraphModule, claim: Claim) -> None:
    """Tensors along a new dimension: joined along the one behind it, and reshaped.

    Where no dimension is behind it, along the first one; then the new one is moved to the end.
    """
    node = claim.match.anchor
    dim = arguments_of(node)["dim"] % len(_shape(node))
    _write_along_new_dimension(model, node, dim)


def _write_along_new_dimension(model: GraphModule, node: Node, dim: int) -> None:
    from torchquilt.backend import call_before, write_as

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


def _write_joined(model: GraphModule, claim: Claim) -> None:
    """Tensors are joined along a dimension that they have, or else along a new one behind theirs."""
    from torchquilt.backend import write_as

    node = claim.match.anchor
    tensors = list(_arguments(node)[0])
    rank = len(_shape(tensors[0]))
    dim = {"hstack": min(rank - 1, 1), "vstack": 0, "dstack": 2, "column_stack": 1}[
        claim.match.pattern.working.name
    ]
    if claim.match.pattern.working.name == "vstack" and rank == 1:
        _write_along_new_dimension(model, node, 0)
    elif dim < rank:
        write_as(node, _aten().cat.default, tensors, dim)
    else:
        _write_along_new_dimension(model, node, rank)


def _write_pad(model: GraphModule, claim: Claim) -> None:
    """The delegate pads integers for a convolution only; zeros can be joined to any tensor."""
    from torchquilt.backend import call_before, write_as

    node = claim.match.anchor
    if claim.match.output is not node or len(claim.match.pattern.operators) > 1:
        return
    data = _arguments(node)[0]
    padded = [(dim, sizes) for dim, sizes in padding_of(node).items() if any(sizes)]
    for dim, sizes in padded:
        before, after = (_zeros(model, node, data, dim, size) for size in sizes)
        parts = [*before, data, *after]
        data = call_before(model, node, _aten().cat.default, parts, dim)
    write_as(node, _aten().reshape.default, data, _new_shape(node))


def _zeros(model: GraphModule, node: Node, data: Node, dim: int, size: int) -> list[Node]:
    import torch

    from torchquilt.backend import free_name, read_tensor

    if not size:
        return []
    shape = _shape(data)
    shape[dim] = size
    name = free_name(model, f"{node.name}_zeros")
    return [read_tensor(model, name, torch.zeros(shape, dtype=data.meta["val"].dtype), before=node)]


_FORMS: dict[str, Callable[[GraphModule, Claim], None]] = {
    "addmm": _write_product,
    "atleast": _write_reshape,
    "channel_shuffle": _write_shuffle,
    "clamp": _write_clamp,
    "column_stack": _write_joined,
    "conv2d": _write_pointwise,
    "detach": _write_clone,
    "div": _write_quotient,
    "dstack": _write_joined,
    "expand": _write_reshape,
    "flatten": _write_plain_reshape,
    "hstack": _write_joined,
    "matmul": _write_product,
    "matrix_transpose": _write_permute,
    "mean": _write_mean,
    "movedim": _write_permute,
    "narrow": _write_slice,
    "pad": _write_pad,
    "pixel_shuffle": _write_shuffle,
    "pixel_unshuffle": _write_shuffle,
    "repeat": _write_reshape,
    "reshape": _write_plain_reshape,
    "rsub": _write_difference,
    "select": _write_select,
    "squeeze": _write_reshape,
    "stack": _write_stack,
    "swapaxes": _write_permute,
    "unflatten": _write_reshape,
    "unsqueeze": _write_reshape,
    "view": _write_plain_reshape,
    "view_as": _write_reshape,
    "vstack": _write_joined,
}
#: Of these, the operators that are written in another form only where they are dynamic.
_DYNAMIC_FORMS = ("conv2d",)
