"""Layouts of channels: on which axis of a tensor the channels of an operator before it lie, and which.

A scale for each channel of an operator goes through all that is positively homogeneous, ``f(s·x) = s·f(x)``
for ``s > 0``: relu, pooling, products with what is not scaled, and the movement of data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from typing import Any, TypeAlias

import attrs
import torch
from torch.fx import Node

from torchquilt.graph.node_values import argument_of, overload_name, rank, tensor_of, writes
from torchquilt.support.data_movement import moves_data_only


@attrs.frozen(eq=False)
class Layout:
    """Channels of an operator in a tensor behind it.

    Args:
        axis: the axis of the tensor on which they lie, from 0.
        channels: for each index on it the channel of the operator, -1 for what is none of it.
    """

    axis: int
    channels: torch.Tensor

    def same_as(self, other: Layout) -> bool:
        """Whether two tensors have the same channels on the same axis, counted from the last."""
        return self.axis == other.axis and torch.equal(self.channels, other.channels)


class NoLayoutError(Exception):
    """The scale of a channel does not go through an operator; the text is the reason."""


_IN_PLACE_TOO = ("relu", "leaky_relu", "abs", "neg", "rrelu")
_POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool")
_UPSAMPLED = (
    "nearest1d",
    "nearest2d",
    "nearest3d",
    "_nearest_exact2d",
    "linear1d",
    "bilinear2d",
    "bicubic2d",
)

#: The result has the axes of the input.
_SAME = frozenset(
    (
        *(f"aten.{name}{end}.default" for name in _IN_PLACE_TOO for end in ("", "_")),
        *(f"aten.{name}{n}d.default" for name in _POOLS for n in (1, 2, 3)),
        *(f"aten.upsample_{name}.{form}" for name in _UPSAMPLED for form in ("vec", "default")),
        *(f"aten.{name}.default" for name in ("dropout", "feature_dropout", "alpha_dropout", "contiguous")),
        *(f"aten.{name}.default" for name in ("clone", "detach", "alias", "lift_fresh_copy")),
        "aten.mul.Scalar",
        "aten.div.Scalar",
    )
)
_PRODUCTS = frozenset(f"aten.{name}.Tensor" for name in ("mul", "mul_", "multiply"))
_QUOTIENTS = frozenset(f"aten.{name}.Tensor" for name in ("div", "div_", "divide", "true_divide"))
_SUMS = frozenset(f"aten.{name}.Tensor" for name in ("add", "add_", "sub", "sub_"))
_REDUCTIONS = frozenset(("aten.mean.dim", "aten.sum.dim_IntList", "aten.amax.default"))
_CASTS = frozenset(("aten.to.dtype", "aten._to_copy.default", "aten.to.dtype_layout", "aten.type_as.default"))
_PADS = frozenset(("aten.pad.default", "aten.constant_pad_nd.default"))
_CLAMPS = frozenset(
    f"aten.{name}{end}.default" for name in ("clamp", "clamp_min", "clip") for end in ("", "_")
)
_CLIPS = frozenset(
    f"aten.{name}{end}.default" for name in ("relu6", "hardtanh", "clamp_max") for end in ("", "_")
)
#: These read no value of a tensor.
_OF_SHAPES = frozenset(("aten.sym_size.int", "aten._assert_tensor_metadata.default"))

Layouts: TypeAlias = Mapping[Node, Layout]


def reads_shape_alone(user: Node) -> bool:
    """Whether a node asks for the shape or the dtype of a tensor, and not for its values."""
    return overload_name(user) in _OF_SHAPES


def layout_behind(user: Node, layouts: Layouts, constants: Container[Node]) -> Layout:
    """The layout of what a node returns, from those of its inputs.

    Args:
        user: the node.
        layouts: the layout of each node before it that is scaled.
        constants: the constant nodes of the graph.

    Raises:
        NoLayoutError: the scales do not go through the node.
    """
    name = overload_name(user)
    if writes(user) and user.args[0] not in layouts:
        raise NoLayoutError(f"{user.name} writes it into a tensor that has other scales")
    for names, behind in _RULES:
        if name in names:
            return behind(user, layouts)
    if name == "aten.prelu.default" and argument_of(user, "weight") in constants:
        return _same_axis(user, layouts)
    if moves_data_only(user):
        return _moved(user, layouts)
    raise NoLayoutError(f"{user.name} ({name or user.target}) is not positively homogeneous")


def _only(user: Node, layouts: Layouts) -> tuple[Node, Layout]:
    """The first input that is scaled, and its layout."""
    return next((node, layouts[node]) for node in user.all_input_nodes if node in layouts)


def _same_axis(user: Node, layouts: Layouts) -> Layout:
    node, layout = _only(user, layouts)
    return _checked(user, layout.axis + (rank(user) or 0) - (rank(node) or 0), layout.channels)


def _checked(user: Node, axis: int, channels: torch.Tensor) -> Layout:
    """A layout, if the result of a node has so many channels on that axis."""
    value = tensor_of(user)
    if value is None or not 0 <= axis < value.dim() or value.shape[axis] != len(channels):
        raise NoLayoutError(f"{user.name} changes the axis of the channels")
    return Layout(axis, channels)


def _product(user: Node, layouts: Layouts) -> Layout:
    scaled = [source for source in user.args[:2] if source in layouts]
    if len(scaled) > 1:
        raise NoLayoutError(f"{user.name} multiplies two tensors that would both be scaled")
    return _same_axis(user, layouts)


def _quotient(user: Node, layouts: Layouts) -> Layout:
    if user.args[1] in layouts:
        raise NoLayoutError(f"{user.name} divides by the tensor that would be scaled")
    return _same_axis(user, layouts)


def _sum(user: Node, layouts: Layouts) -> Layout:
    found = [layouts[source] for source in user.args[:2] if isinstance(source, Node) and source in layouts]
    shapes = {rank(source) for source in user.args[:2] if isinstance(source, Node)}
    if len(found) < 2:
        raise NoLayoutError(f"{user.name} adds a tensor that has other scales")
    if len(shapes) > 1 or not found[0].same_as(found[1]):
        raise NoLayoutError(f"{user.name} adds other channels to each channel")
    return _same_axis(user, layouts)


def _reduced(user: Node, layouts: Layouts) -> Layout:
    node, layout = _only(user, layouts)
    count, dims = rank(node) or 0, argument_of(user, "dim")
    over = {dim % count for dim in dims} if dims else set(range(count))
    if layout.axis in over:
        raise NoLayoutError(f"{user.name} reduces over the channels")
    if argument_of(user, "keepdim"):
        return _checked(user, layout.axis, layout.channels)
    return _checked(user, layout.axis - sum(dim < layout.axis for dim in over), layout.channels)


def _cast(user: Node, layouts: Layouts) -> Layout:
    value = tensor_of(user)
    if value is None or not value.dtype.is_floating_point:
        raise NoLayoutError(f"{user.name} rounds to {value.dtype if value is not None else 'no tensor'}")
    return _same_axis(user, layouts)


def _padded(user: Node, layouts: Layouts) -> Layout:
    node, layout = _only(user, layouts)
    amounts, value = argument_of(user, "pad"), argument_of(user, "value")
    if value:
        raise NoLayoutError(f"{user.name} pads with {value}, which would have to be scaled")
    if len(amounts) // 2 > (rank(node) or 0) - 1 - layout.axis:
        raise NoLayoutError(f"{user.name} pads the channels")
    return _same_axis(user, layouts)


def _clamped(user: Node, layouts: Layouts) -> Layout:
    low = argument_of(user, "min")
    high = argument_of(user, "max") if "clamp_min" not in overload_name(user) else None
    if low == 0 and high is None:  # a relu
        return _same_axis(user, layouts)
    return _clipped(user, layouts)


def _clipped(user: Node, layouts: Layouts) -> Layout:
    raise NoLayoutError(f"{user.name} clips at a fixed value, so a scale does not go through it")


_RULES: tuple[tuple[Container[str], Callable[[Node, Layouts], Layout]], ...] = (
    (_SAME, _same_axis),
    (_PRODUCTS, _product),
    (_QUOTIENTS, _quotient),
    (_SUMS, _sum),
    (_REDUCTIONS, _reduced),
    (_CASTS, _cast),
    (_PADS, _padded),
    (_CLAMPS, _clamped),
    (_CLIPS, _clipped),
)


# --- Movement of data: the operator itself moves the numbers of channels -----------------------------------


def _moved(user: Node, layouts: Layouts) -> Layout:
    """Let the operator move the numbers of the channels, and see on which axis they lie then."""
    try:
        result = user.target(  # type: ignore[operator]
            *torch.fx.map_arg(user.args, lambda node: _numbers(node, layouts)),
            **torch.fx.map_arg(user.kwargs, lambda node: _numbers(node, layouts)),
        )
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise NoLayoutError(f"{user.name} moves channels in a way that is not known") from error
    if not isinstance(result, torch.Tensor):
        raise NoLayoutError(f"{user.name} returns several tensors")
    for axis in range(result.dim()):
        rows = result.movedim(axis, 0).reshape(result.shape[axis], -1)
        value = tensor_of(user)
        if bool((rows == rows[:, :1]).all()) and value is not None and isinstance(value.shape[axis], int):
            return _checked(user, axis, rows[:, 0].clone())
    raise NoLayoutError(f"{user.name} mixes channels with another axis")


def _numbers(node: Node, layouts: Layouts) -> Any:
    """The number of its channel for each element of a tensor, in the shape of the example; sizes as such."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return size_of(value)
    shape = [size_of(size) for size in value.shape]
    if node not in layouts:
        if not value.dtype.is_floating_point:
            raise TypeError("an index is not known")
        return torch.full(shape, -1)
    layout = layouts[node]
    view = [-1 if axis == layout.axis else 1 for axis in range(len(shape))]
    return layout.channels.reshape(view).expand(shape).contiguous()


def size_of(size: Any) -> Any:
    """A size of the example, also where it is dynamic."""
    if not isinstance(size, torch.SymInt):
        return size
    node = size.node
    return int(node.hint) if node.has_hint() else 2


def elements_of(value: torch.Tensor) -> int:
    """Number of elements of the example."""
    return math.prod(size_of(size) for size in value.shape)
