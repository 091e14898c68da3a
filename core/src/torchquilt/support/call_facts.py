"""Facts about calls, for constraints and rewrites: arguments, bounds, padding, splits.

Importing this module does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchquilt.graph.node_values import arguments_of, overload_name
from torchquilt.support.pattern import Match

if TYPE_CHECKING:
    from torch.fx import Node


def argument(match: Match, position: int, keyword: str, default: Any = None) -> Any:
    """An argument of the anchor, passed by position or by keyword.

    Args:
        match: the match.
        position: index among the positional arguments.
        keyword: name in the schema.
        default: the value where it is not passed.
    """
    node = match.anchor
    if position < len(node.args):
        return node.args[position]
    return node.kwargs.get(keyword, default)


def is_pointwise(node: Node) -> bool:
    """Whether a convolution computes each pixel from one pixel of its input, over all channels.

    XNNPACK runs such a convolution as a matrix product over pixels. Its dynamic kernel then finds
    quantization parameters for each pixel, even if other kernels read the same quantized tensor.
    """
    named = arguments_of(node)
    padding = named["padding"]
    return (
        tuple(named["weight"].meta["val"].shape[2:]) == (1, 1)
        and set(named["stride"]) == {1}
        and (isinstance(padding, str) or set(padding) == {0})
        and named["groups"] == 1
    )


_PADS = frozenset({"aten.pad.default", "aten.constant_pad_nd.default"})


def padding_of(node: Node) -> dict[int, tuple[int, int]]:
    """The padding of a ``pad`` call: dimension → number of elements before and after."""
    assert str(node.target) in _PADS
    amounts: Any = node.args[1]
    last = node.meta["val"].dim() - 1
    return {last - i // 2: (amounts[i], amounts[i + 1]) for i in range(0, len(amounts), 2)}


def pads_with_zeros(node: Node) -> bool:
    """Whether a node pads a tensor with zeros, and crops nothing."""
    if overload_name(node) not in _PADS:
        return False
    named = arguments_of(node)
    amounts, value = named["pad"], named["value"]
    is_constant = named.get("mode", "constant") == "constant" and value in (None, 0)
    return is_constant and all(isinstance(amount, int) and amount >= 0 for amount in amounts)


# Operators that split a tensor → the position of their argument ``dim``.
_SPLITS = {
    "aten.chunk.default": 2,
    "aten.split.Tensor": 2,
    "aten.split.sizes": 2,
    "aten.split_copy.Tensor": 2,
    "aten.split_with_sizes.default": 2,
    "aten.split_with_sizes_copy.default": 2,
    "aten.tensor_split.indices": 2,
    "aten.tensor_split.sections": 2,
    "aten.unbind.int": 1,
    "aten.unbind_copy.int": 1,
    "aten.unsafe_chunk.default": 2,
    "aten.unsafe_split.Tensor": 2,
    "aten.unsafe_split_with_sizes.default": 2,
}


# Operators that split a tensor along a fixed dimension → the dimension.
_SPLITS_AT = {"aten.hsplit": 1, "aten.vsplit": 0, "aten.dsplit": 2}


def is_split(node: Node) -> bool:
    """Whether a node splits a tensor along one dimension, and returns the parts."""
    name = overload_name(node)
    return name in _SPLITS or name.rpartition(".")[0] in _SPLITS_AT


def split_dimension(node: Node) -> int:
    """The dimension along which a split (:func:`is_split`) cuts its tensor."""
    data: Any = node.args[0]
    rank: int = data.meta["val"].dim()
    name = overload_name(node)
    if name not in _SPLITS:
        return min(_SPLITS_AT[name.rpartition(".")[0]], rank - 1)
    position = _SPLITS[name]
    dim: Any = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
    return int(dim) % rank


def bounds(clamp: Node) -> tuple[Any, Any]:
    """The lower and upper bound of a ``clamp``, each a number or None."""
    named = arguments_of(clamp)
    return named.get("min"), named.get("max")
