"""The memory layout of images around dynamic kernels, said to the delegate.

Convolutions of XNNPACK read and write images channels last; a pass of ExecuTorch puts transpositions in. In
front of a dynamic quantize it goes back through all that computes the tensor, to the first input, and turns
the layout of that; whatever else reads it, and every operator between, then gets an image of another layout.
Where the tensor that is quantized has the layout already, the pass leaves it alone. So each dynamic quantize
of an image gets a copy that says the layout: channels last for a convolution, as it is for a linear. Copies
that change nothing are dropped by the delegate.

A softmax is computed along what lies last in memory, which behind a convolution are the channels, and the
pass does not know that. So it gets a copy that says the layout, too, where its input may be of another.

Where an operator needs an image turned that is dequantized, the pass turns it for all who read that
dequantize, also for those whose layout is settled. Convert gives each operator a dequantize of its own; but
where the operator is decomposed, several read it. So each of those gets its own.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

from torchquilt.backend import Granularity, chooses_qparams, dequantize_of, overload_name, quantize_of

_IMAGE = 4
_CHANNELS_LAST = (0, 2, 3, 1)
_CONTIGUOUS = (0, 1, 2, 3)
#: ``node.meta`` of a copy that says a layout.
_SAYS_LAYOUT = "torchquilt_xnnpack_says_layout"
_CONVOLUTION = "aten.convolution.default"
_SOFTMAX = "aten._softmax.default"
#: What the delegate computes channels last, and what it computes in the order of the dimensions; all else
#: has the layout of what it reads.
_TURNING = (
    _CONVOLUTION,
    "aten.upsample_bilinear2d.vec",
    "aten.mean.dim",
    "aten.max_pool2d.default",
    "aten.amax.default",
    "aten.max.dim",
    "aten.avg_pool2d.default",
    "aten.prelu.default",
)
_CONTIGUOUS_ANYWAY = ("aten.view_copy.default", "aten.linear.default")
#: What the delegate computes in the kernel of the convolution before it.
_FUSED = ("aten.relu.default", "aten.hardtanh.default")


def say_layouts(model: Any) -> Any:
    """Put a copy that says the layout in front of dynamic quantizes and softmaxes, and behind convolutions.

    Args:
        model: the program's graph in ExecuTorch's dialect.
    """
    from torch.fx.passes.infra.pass_base import PassResult

    quantized = [node for node in model.graph.nodes if _is_dynamic_quantize(node)]
    convolutions = [node for node in model.graph.nodes if is_dynamic_convolution(node)]
    images = {node.args[0].args[0] for node in convolutions}
    for node in quantized:
        if node in images or _is_per_token(node):
            _say_before(node, _CHANNELS_LAST if node in images else _CONTIGUOUS)
    for node in convolutions:
        _say_behind(_with_what_is_fused(node)[-1])
    softmaxes = [node for node in model.graph.nodes if _is_softmax_of_turned(node)]
    for node in softmaxes:
        with node.graph.inserting_before(node):
            copy = _copy(_apart_from_integers(node.args[0]), _CONTIGUOUS)
        node.replace_input_with(node.args[0], copy)
    if quantized or softmaxes:
        model.recompile()
    return PassResult(model, bool(quantized or softmaxes))


def own_dequantizes(model: Any, taken: Container[str]) -> Any:
    """Give each operator a dequantize of its own where several read one of an image.

    What stays outside of the delegate shares one: each costs a conversion.

    Args:
        model: the program's graph in ExecuTorch's dialect.
        taken: the operators that the delegate may take (``aten.permute_copy.default``).
    """
    from torch.fx.passes.infra.pass_base import PassResult

    is_changed = False
    for node in list(model.graph.nodes):
        told = dequantize_of(node)
        if told is None or not told.has_one_scale or node.meta["val"].dim() != _IMAGE:
            continue
        readers = [user for user in node.users if overload_name(user) in taken]
        kept = 1 if len(readers) == len(node.users) else 0
        for reader in readers[kept:]:
            with model.graph.inserting_after(node):
                own = model.graph.call_function(node.target, node.args, node.kwargs)
            own.meta = dict(node.meta)
            reader.replace_input_with(node, own)
            is_changed = True
    if is_changed:
        model.recompile()
    return PassResult(model, is_changed)


def is_dynamic_convolution(node: Any) -> bool:
    """Whether a node is a convolution of an image quantized when it runs, as the delegate takes it."""
    if overload_name(node) != _CONVOLUTION:
        return False
    dequantize, weight, groups, is_transposed = node.args[0], node.args[1], node.args[8], node.args[6]
    shape = weight.meta["val"].shape
    is_depthwise = not is_transposed and groups > 1 and shape[1] == 1
    source = dequantize_of(dequantize)
    is_image = len(shape) == _IMAGE and not is_depthwise
    return is_image and source is not None and _is_dynamic_quantize(source.input)


def is_softmax(node: Any) -> bool:
    """Whether a node is a softmax."""
    return overload_name(node) == _SOFTMAX


def copies_before(softmax: Any) -> Iterator[Any]:
    """The copy that says the layout in front of a softmax, and what stands between it and integers."""
    node = softmax.args[0]
    while says_layout(node):
        yield node
        node = node.args[0]


def _is_softmax_of_turned(node: Any) -> bool:
    """Whether a node is a softmax of an image that the delegate may have channels last."""
    if not is_softmax(node) or node.meta["val"].dim() != _IMAGE:
        return False
    seen, waiting = set(), [node.args[0]]
    while waiting:
        source = waiting.pop()
        value = source.meta.get("val")
        if source in seen or not hasattr(value, "dim") or value.dim() != _IMAGE:
            continue
        seen.add(source)
        name = overload_name(source)
        if name in _TURNING or (source.op == "placeholder" and not value.is_contiguous()):
            return True
        if name not in _CONTIGUOUS_ANYWAY:
            waiting += source.all_input_nodes
    return False


def copies_around(convolution: Any) -> Iterator[Any]:
    """The copies that say the layout around a dynamic convolution, and what stands between it and them.

    They are to be in one part of the program with it: outside of the delegate images keep their layout.
    """
    copy = convolution.args[0].args[0].args[0]
    if says_layout(copy):
        yield copy
    *between, last = _with_what_is_fused(convolution)
    yield from (*between[1:], *((last,) if between else ()))
    yield from (user for user in last.users if says_layout(user))


def says_layout(node: Any) -> bool:
    """Whether a node is a copy that says a layout: one of floats, whatever is quantized around it."""
    return bool(node.meta.get(_SAYS_LAYOUT))


def _is_dynamic_quantize(node: Any) -> bool:
    """Whether a node quantizes an image with parameters that are found when it runs."""
    told = quantize_of(node)
    if told is None or told.has_one_scale or told.input.meta["val"].dim() != _IMAGE:
        return False
    return any(map(chooses_qparams, told.scale.all_input_nodes))


def _is_per_token(quantize: Any) -> bool:
    told = quantize_of(quantize)
    return told is not None and told.granularity is Granularity.PER_TOKEN


def _with_what_is_fused(convolution: Any) -> tuple[Any, ...]:
    readers = list(convolution.users)
    if len(readers) == 1 and overload_name(readers[0]) in _FUSED:
        return convolution, readers[0]
    return (convolution,)


def _say_before(quantize: Any, order: tuple[int, ...]) -> None:
    image, choose = quantize.args[0], quantize.args[1].args[0]
    with quantize.graph.inserting_before(choose):
        copy = _copy(_apart_from_integers(image), order)
    choose.replace_input_with(image, copy)
    quantize.replace_input_with(image, copy)


def _apart_from_integers(image: Any) -> Any:
    """An image, or the same one behind an operator of floats where it comes from integers.

    ExecuTorch does not drop a copy right behind a dequantize, and transposes what has its layout already.
    """
    import torch
    from executorch.exir.dialects._ops import ops

    told = dequantize_of(image)
    if told is None or not told.has_one_scale:
        return image
    largest = torch.finfo(torch.float32).max
    same = image.graph.call_function(ops.edge.aten.hardtanh.default, (image, -largest, largest))
    same.meta = _meta_like(image)
    return same


def _say_behind(node: Any) -> None:
    readers = list(node.users)
    with node.graph.inserting_after(node):
        copy = _copy(node, _CONTIGUOUS)
    for reader in readers:
        reader.replace_input_with(node, copy)


def _meta_like(image: Any) -> dict[str, Any]:
    """The facts about a node that a copy of it shares.

    Not where it comes from: the ledger tells how an operator runs, and a copy that the delegate computes in
    float, maybe in another part, is not that operator.
    """
    own = ("from_node", "debug_handle")
    return {**{key: value for key, value in image.meta.items() if key not in own}, _SAYS_LAYOUT: True}


def _copy(image: Any, order: tuple[int, ...]) -> Any:
    import torch
    from executorch.exir.dialects._ops import ops

    target = ops.edge.dim_order_ops._to_dim_order_copy.default
    copy = image.graph.call_function(target, (image,), {"dim_order": list(order)})
    copy.meta = _meta_like(image)
    layout = torch.channels_last if order == _CHANNELS_LAST else torch.contiguous_format
    value = image.meta["val"]
    with value.fake_mode:
        copy.meta["val"] = value.clone(memory_format=layout)
    return copy
