"""Back from a model that trains to a prepared one, whose weights are constants: a pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torchquilt.graph.code_generation import outdate
from torchquilt.graph.edits import store_tensor
from torchquilt.graph.node_values import (
    attribute,
)
from torchquilt.graph.subgraphs import regions
from torchquilt.pt2e.qat.batch_norm import BatchNorm, FoldedBatchNorm
from torchquilt.pt2e.qat.points import TrainingPoint
from torchquilt.pt2e.qat.stored_tensors import Copied, FloatWeight, SettledBias
from torchquilt.pt2e.qat.switched import SwitchedOperator
from torchquilt.pt2e.qat.wiring import ASSIGNED_KEY, OPERATOR_KEY


def back_to_constants(model: GraphModule) -> GraphModule:
    """Store folded and copied tensors as constants, and write modules as operators; changes ``model``."""
    for region in regions(model):
        module = region.module
        before = len(module.graph.nodes)
        for node in list(module.graph.find_nodes(op="call_module")):
            held = module._modules.get(str(node.target))
            if isinstance(held, FoldedBatchNorm) and node.args[0] == "normalized":
                node.replace_all_uses_with(node.args[1])
                module.graph.erase_node(node)
            elif isinstance(held, TrainingPoint) and len(node.args) == 3:
                node.args = node.args[: 1 if node.args[1] else 2]
            elif isinstance(held, (SettledBias, FloatWeight)):
                node.replace_all_uses_with(node.args[0])
                module.graph.erase_node(node)
        _store_values(module)
        for node in list(module.graph.find_nodes(op="call_module")):
            if OPERATOR_KEY in node.meta:
                _write_operator(module, node)
        _drop_idle(module)
        if len(module.graph.nodes) != before:
            outdate(module)
    return model


class _Values:
    """Values of nodes that are computed from stored tensors, by operators and modules."""

    def __init__(self, model: GraphModule) -> None:
        self._model = model
        self._known: dict[Node, Any] = {}

    def of(self, node: Node) -> Any:
        if node not in self._known:
            self._known[node] = self._computed(node)
        return self._known[node]

    def _computed(self, node: Node) -> Any:
        if node.op == "get_attr":
            return attribute(self._model, str(node.target))
        target: Any = node.target
        if node.op == "call_module":
            target = getattr(self._model, str(node.target))
        return target(*torch.fx.map_arg(node.args, self.of), **torch.fx.map_arg(node.kwargs, self.of))


def _store_values(model: GraphModule) -> None:
    """Store the tensors that modules compute; compute all first, since one may take the name of another."""
    values = _Values(model)
    with torch.no_grad():
        found = [(node, values.of(node)) for node in model.graph.nodes if ASSIGNED_KEY in node.meta]
    for node, value in found:
        name = node.meta.pop(ASSIGNED_KEY)
        store_tensor(model, name, torch.nn.Parameter(value.detach().clone(), requires_grad=False))
        node.op, node.target, node.args = "get_attr", name, ()


def _write_operator(model: GraphModule, node: Node) -> None:
    """Write a module as its operator in evaluation mode."""
    target, literals, name = node.meta.pop(OPERATOR_KEY)
    schema = [argument.name for argument in target._schema.arguments]
    held = model._modules[str(node.target)]
    if isinstance(held, BatchNorm):
        roles = ("input", "weight", "bias", "running_mean", "running_var")
        tensors: Mapping[str, Any] = dict(zip(roles, node.args, strict=False))
    else:
        tensors = {**dict(zip(schema, node.args, strict=False)), **node.kwargs}
    args = tuple(tensors.get(one, literals.get(one)) for one in schema)
    positional, keywords = _split(target, args)
    with model.graph.inserting_before(node):
        new = model.graph.create_node("call_function", target, positional, keywords)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    model.graph.erase_node(node)
    new.name = name


def _split(target: Any, values: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Values of all arguments of an operator, by position and by name."""
    arguments = target._schema.arguments
    positional = tuple(v for a, v in zip(arguments, values, strict=True) if not a.kwarg_only)
    return positional, {a.name: v for a, v in zip(arguments, values, strict=True) if a.kwarg_only}


def _drop_idle(model: GraphModule) -> None:
    """Erase modules of training that nothing reads any more, and the tensors that only they read."""
    for node in reversed(list(model.graph.nodes)):
        held = model._modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(held, (FoldedBatchNorm, Copied)) and not node.users:
            model.graph.erase_node(node)
    for node in reversed(list(model.graph.find_nodes(op="get_attr"))):
        if not node.users:
            model.graph.erase_node(node)
    called = {str(node.target) for node in model.graph.find_nodes(op="call_module")}
    kinds = (FoldedBatchNorm, BatchNorm, SwitchedOperator, Copied, SettledBias, FloatWeight)
    for name, held in list(model.named_children()):
        if isinstance(held, kinds) and name not in called:
            model.delete_submodule(name)
