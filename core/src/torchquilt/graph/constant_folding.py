"""Nodes that are computed from stored tensors alone: their values, and each of them once."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch.fx import GraphModule, Node, map_arg

from torchquilt.graph.code_generation import outdate
from torchquilt.graph.node_values import (
    argument_of,
    attribute,
    constant_nodes,
    is_constant,
    overload_name,
    tensor_of,
)
from torchquilt.graph.shared_storage import span_of


def simplify_constants(model: GraphModule) -> GraphModule:
    """Compute each constant once, and ask nothing of constants that is known; changes ``model``.

    A layer that is called twice casts and transposes its weight twice (``w.float().t()``). These are
    one constant, so that its integers are stored once. Export also asserts what dtype the weight has;
    such a check of a constant has been passed already, and would keep the float weight alive.
    """
    nodes = list(model.graph.nodes)
    casts = [node for node in nodes if _cast_by_dtype(node)]
    constants = constant_nodes(model.graph)
    first: dict[Any, Node] = {}
    for node in nodes:
        if overload_name(node) == "aten._assert_tensor_metadata.default" and node.args[0] in constants:
            model.graph.erase_node(node)
        elif node in constants:
            same = first.setdefault(_expression(model, node), node)
            if same is not node:
                node.replace_all_uses_with(same)
                model.graph.erase_node(node)
    if casts or len(model.graph.nodes) < len(nodes):
        outdate(model)
    return model


def _cast_by_dtype(node: Node) -> bool:
    """``w.type_as(x)`` depends on the dtype of x alone, and that is known: it is as constant as ``w`` is.

    Returns whether the node is such a cast, and has been changed.
    """
    if overload_name(node) not in ("aten.type_as.default", "aten.to.other"):
        return False
    weight, value = argument_of(node, "self"), tensor_of(node)
    on_one_device = value is not None and weight.meta["val"].device == value.device
    if value is None or not on_one_device or len(node.args) != 2 or not is_constant(weight):
        return False
    node.target, node.args = torch.ops.aten.to.dtype, (weight, value.dtype)
    return True


def _expression(model: GraphModule, node: Node) -> Any:
    """A key that two constants have in common if they are the same, given that their inputs are merged."""
    if node.op == "get_attr":
        # Names of one tensor are tensors of their own, over the same memory, once they were saved and loaded.
        tensor = attribute(model, str(node.target))
        memory = span_of(tensor)
        return id(tensor) if memory is None else (memory, tensor.dtype, tensor.shape, tensor.stride())
    keywords = sorted(node.kwargs.items())
    return node.target, _hashable(node.args), tuple((name, _hashable(value)) for name, value in keywords)


def _hashable(argument: Any) -> Any:
    """An argument of an operator as a key; 1, 1.0 and True are different ones."""
    if isinstance(argument, (tuple, list)):
        return tuple(map(_hashable, argument))
    return type(argument), argument


def constant_value(model: GraphModule, node: Node, identities: Container[str] = ()) -> torch.Tensor:
    """Compute the value of a node for which ``is_constant`` holds, without gradients.

    Args:
        model: the module that holds the tensors.
        node: the node.
        identities: names of submodules that return their only input.
    """
    values: dict[Node, Any] = {}
    pending = [node]
    with torch.no_grad():
        while pending:
            current = pending.pop()
            missing = [source for source in current.all_input_nodes if source not in values]
            if missing:
                pending += [current, *missing]
            elif current not in values:
                values[current] = _evaluate(model, current, values, identities)
    value = values[node]
    assert isinstance(value, torch.Tensor)
    return value.detach()


def _evaluate(model: GraphModule, node: Node, values: dict[Node, Any], identities: Container[str]) -> Any:
    """The value of a node, from the values of its inputs."""
    if node.op == "get_attr":
        return attribute(model, str(node.target))
    if node.op == "call_module" and node.target in identities:
        return values[node.all_input_nodes[0]]
    assert callable(node.target)
    return node.target(*map_arg(node.args, values.__getitem__), **map_arg(node.kwargs, values.__getitem__))
