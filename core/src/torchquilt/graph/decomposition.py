"""Telling the operators of a decomposed program: ``run_decompositions()`` makes ``addmm`` of ``linear``.

Quantizers match what ``torch.export`` gives. Of a decomposed program they find next to nothing, and
should say why. Most of these operators are never written by hand; those that are (``addmm``) are told by
what stands around them. What export noted about the origin of a node is not asked.

Importing this module does not import torch.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

from torchquilt.graph.node_values import argument_of, overload_name, rank

if TYPE_CHECKING:
    from torch.fx import Node

_MADE_OF = {
    "aten._native_batch_norm_legit_no_training.default": "aten.batch_norm",
    "aten._native_batch_norm_legit.no_stats": "aten.instance_norm",
    "aten.native_layer_norm.default": "aten.layer_norm",
    "aten.native_group_norm.default": "aten.group_norm",
    "aten._softmax.default": "aten.softmax",
    "aten._log_softmax.default": "aten.log_softmax",
    "aten._adaptive_avg_pool2d.default": "aten.adaptive_avg_pool2d",
    "aten._embedding_bag.default": "aten.embedding_bag",
    "aten._to_copy.default": "aten.to",
    "aten.constant_pad_nd.default": "aten.pad",
}


def decomposed_from(node: Node) -> str:
    """The operator that this one was made of, as ``aten.linear``; empty where it is not known to be made."""
    name = overload_name(node)
    if name == "aten.convolution.default":
        transpose = "_transpose" if argument_of(node, "transposed") else ""
        return f"aten.conv{transpose}{(rank(node) or 2) - 2}d"
    if name in ("aten.addmm.default", "aten.mm.default"):
        return "aten.linear" if _swaps_two_dimensions(argument_of(node, "mat2")) else ""
    if name == "aten.max_pool2d_with_indices.default":
        indices = any(user.target is operator.getitem and user.args[1] == 1 for user in node.users)
        return "" if indices else "aten.max_pool2d"
    return _MADE_OF.get(name, "")


def _swaps_two_dimensions(node: Node) -> bool:
    """By hand people write ``.t()`` or ``.transpose(0, 1)``, which export keeps as they are."""
    return overload_name(node) == "aten.permute.default" and list(node.args[1]) == [1, 0]  # type: ignore[arg-type]


def explanation(node: Node) -> str:
    """One sentence about a node for which :func:`decomposed_from` has an answer."""
    return (
        f"{overload_name(node)} is what run_decompositions() makes of {decomposed_from(node)}, and "
        "quantizers match what torch.export gives: prepare the program before it is decomposed"
    )
