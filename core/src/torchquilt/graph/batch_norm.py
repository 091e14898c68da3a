"""Folding BatchNorm into the operator before it, where the two are provably equal to one.

``bn(conv(x)) = conv'(x)`` with the weight scaled and the bias shifted for each output channel, as in
``torch.nn.utils.fusion``, which does the arithmetic here. It holds when the statistics are fixed
(evaluation mode), nobody else reads what the BatchNorm reads, and the channel that BatchNorm
normalises (dimension 1 of its input) is the output channel of the operator.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights

from torchquilt.graph.edits import (
    drop_unused_tensors,
    erase_unused,
    fake_like,
    free_name,
    store_tensor,
    take_origin,
)
from torchquilt.graph.values import attribute, overload_name, rank

_CONVOLUTIONS = {
    "aten.conv1d.default": 3,
    "aten.conv1d.padding": 3,
    "aten.conv2d.default": 4,
    "aten.conv2d.padding": 4,
    "aten.conv3d.default": 5,
    "aten.conv3d.padding": 5,
}
# A linear's output channel is its last dimension, which is dimension 1 for matrices only.
_FOLDS_INTO = {**_CONVOLUTIONS, "aten.linear.default": 2}


def fold_batch_norm(model: GraphModule) -> GraphModule:
    """Fold each BatchNorm that can be into the convolution or linear before it; changes ``model``.

    A weight that somebody else reads, too, is left alone: the folded one gets a name of its own.
    """
    folded = False
    reads = Counter(
        str(node.target) for node in model.graph.nodes if node.op == "get_attr" for _ in node.users
    )
    for node in list(model.graph.nodes):
        batch_norm = _foldable(node)
        if batch_norm is not None:
            _fold(model, node, batch_norm, reads)
            folded = True
    if folded:
        drop_unused_tensors(model)
        model.recompile()
    return model


def _foldable(node: Node) -> Node | None:
    """The BatchNorm to fold into ``node``, or None."""
    expected_rank = _FOLDS_INTO.get(overload_name(node))
    if expected_rank is None or len(node.users) != 1 or rank(node) != expected_rank:
        return None
    (user,) = node.users
    if overload_name(user) != "aten.batch_norm.default" or user.args[0] is not node:
        return None
    is_training, statistics = user.args[5], (user.args[3], user.args[4])
    tensors = (*_weight_and_bias(node), *user.args[1:5])
    fixed = all(tensor is None or _is_read(tensor) for tensor in tensors)
    return user if fixed and not is_training and None not in statistics else None


def _is_read(value: Any) -> bool:
    return isinstance(value, Node) and value.op == "get_attr"


def _weight_and_bias(node: Node) -> tuple[Any, Any]:
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    return weight, bias


def _fold(model: GraphModule, node: Node, batch_norm: Node, reads: Counter[str]) -> None:
    weight, bias = _weight_and_bias(node)
    new_weight, new_bias = _folded(model, node, batch_norm)
    holder = str(weight.target).rpartition(".")[0]
    bias_name = str(bias.target) if bias else f"{holder}.bias" if holder else "bias"
    new_nodes = (
        _replacement(model, node, str(weight.target), reads, new_weight),
        _replacement(model, node, bias_name, reads, new_bias),
    )
    node.args = (node.args[0], *new_nodes, *node.args[3:])
    node.kwargs = {key: value for key, value in node.kwargs.items() if key not in ("weight", "bias")}
    batch_norm.replace_all_uses_with(node)
    unread = [source for source in (*batch_norm.all_input_nodes, weight, bias) if source not in (node, None)]
    model.graph.erase_node(batch_norm)
    for source in unread:
        erase_unused(source)


def _folded(model: GraphModule, node: Node, batch_norm: Node) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of ``node`` with the BatchNorm in them, in the dtype of the weight."""
    weight, bias = (_value(model, source) for source in _weight_and_bias(node))
    gamma, beta, mean, variance = (_value(model, source) for source in batch_norm.args[1:5])
    assert weight is not None

    def wide(tensor: torch.Tensor | None) -> Any:
        """Half precision is folded in float32 and rounded once."""
        return tensor.float() if tensor is not None and tensor.dtype.itemsize < 4 else tensor

    epsilon: Any = batch_norm.args[7]
    with torch.no_grad():
        new_weight, new_bias = fuse_conv_bn_weights(
            wide(weight), wide(bias), wide(mean), wide(variance), epsilon, wide(gamma), wide(beta)
        )
    return new_weight.to(weight.dtype), new_bias.to(weight.dtype)


def _value(model: GraphModule, source: Any) -> torch.Tensor | None:
    """The stored tensor that an argument reads, or None for an argument of None."""
    if source is None:
        return None
    found: torch.Tensor = attribute(model, str(source.target))
    return found.detach()


def _replacement(
    model: GraphModule, node: Node, target: str, reads: Counter[str], value: torch.Tensor
) -> Node:
    """A node that reads the new value: under the old name if only ``node`` reads that, else a new one."""
    name = (
        target
        if reads[target] == 1
        else free_name(model, target if not reads[target] else f"{target}_folded")
    )
    store_tensor(model, name, torch.nn.Parameter(value, requires_grad=False))
    with model.graph.inserting_before(node):
        new = model.graph.get_attr(name)
    take_origin(new, node)
    new.meta["val"] = fake_like(node, value)
    return new
