"""Operators that only move numbers: each element that they return is one that they were given.

What such an operator returns has nothing new for an observer that saw all that it was given. Dropout is among
them where it drops nothing.
"""

from __future__ import annotations

from torch.fx import Node

from torchquilt.graph.training import is_random
from torchquilt.graph.values import UNDECLARED_VIEWS, overload_name

#: By their overloads, since another overload of the same name may compute (``aten.max.other``).
_MOVES = frozenset(
    f"aten.{name}"
    for name in (
        "alias.default",
        "cat.default",
        "clone.default",
        "concat.default",
        "concatenate.default",
        "contiguous.default",
        "detach.default",
        "expand.default",
        "flatten.using_ints",
        "flip.default",
        "index_select.default",
        "lift_fresh_copy.default",
        "max_pool1d.default",
        "max_pool2d.default",
        "max_pool3d.default",
        "movedim.int",
        "narrow.default",
        "permute.default",
        "pixel_shuffle.default",
        "pixel_unshuffle.default",
        "repeat.default",
        "reshape.default",
        "roll.default",
        "select.int",
        "slice.Tensor",
        "squeeze.default",
        "squeeze.dim",
        "squeeze.dims",
        "stack.default",
        "swapaxes.default",
        "swapdims.default",
        "t.default",
        "transpose.int",
        "unflatten.int",
        "unsqueeze.default",
        "view.default",
    )
).union(UNDECLARED_VIEWS)


def only_moves(node: Node) -> bool:
    """Whether all elements that a call returns are elements of the tensors that it reads."""
    return node.op == "call_function" and overload_name(node) in _MOVES and not is_random(node)
