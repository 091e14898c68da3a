"""What a node computes: the fake tensor that export recorded, and whether it is a constant."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

_FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def overload_name(node: Node) -> str:
    """``"aten.linear.default"`` for a call of an operator, ``""`` for anything else."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return ""
    return str(node.target)


def tensor_of(node: Node) -> torch.Tensor | None:
    """The fake tensor of a node (its shape and dtype), or None where it does not return one tensor."""
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None


def is_float_tensor(node: Node) -> bool:
    """Whether the node returns one floating point tensor, all that can be quantized."""
    value = tensor_of(node)
    return value is not None and value.dtype in _FLOAT_DTYPES


def rank(node: Node) -> int | None:
    """Number of dimensions, or None where it is not one tensor."""
    value = tensor_of(node)
    return None if value is None else value.dim()


def attribute(model: torch.nn.Module, target: str) -> Any:
    """The attribute that a ``get_attr`` node names by its dotted path."""
    found: Any = model
    for name in target.split("."):
        found = getattr(found, name)
    return found


def is_constant(node: Node) -> bool:
    """Whether the value is the same for every input: computed from stored tensors alone.

    A buffer that the graph writes to is not constant, and neither is anything that draws random
    numbers. Answers for one node by walking what it is computed from.
    """
    seen: set[Node] = set()
    pending = [node]
    reads_a_tensor = False
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.op == "get_attr":
            if any(writes_to(user, current) for user in current.users):
                return False
            reads_a_tensor = reads_a_tensor or tensor_of(current) is not None
        elif current.op == "call_function" and _is_pure(current):
            pending.extend(current.all_input_nodes)
        else:
            return False
    return reads_a_tensor


def constant_value(model: GraphModule, node: Node) -> torch.Tensor:
    """Compute the value of a node for which :func:`is_constant` holds, without gradients."""
    values: dict[Node, Any] = {}

    def compute(current: Node) -> Any:
        if current not in values:
            if current.op == "get_attr":
                values[current] = attribute(model, str(current.target))
            else:
                args = torch.fx.map_arg(current.args, compute)
                kwargs = torch.fx.map_arg(current.kwargs, compute)
                assert callable(current.target)
                values[current] = current.target(*args, **kwargs)
        return values[current]

    with torch.no_grad():
        value = compute(node)
    assert isinstance(value, torch.Tensor)
    return value.detach()


def writes_to(user: Node, node: Node) -> bool:
    """Whether ``user`` is an operator that changes the tensor of ``node`` in place."""
    if not isinstance(user.target, torch._ops.OpOverload) or not user.target._schema.is_mutable:
        return False
    return any(
        argument.alias_info is not None
        and argument.alias_info.is_write
        and _argument(user, index, argument.name) is node
        for index, argument in enumerate(user.target._schema.arguments)
    )


def constant_nodes(graph: torch.fx.Graph) -> frozenset[Node]:
    """All nodes of a graph for which :func:`is_constant` holds, found in one pass."""
    constant: set[Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr":
            holds = tensor_of(node) is not None and not any(writes_to(user, node) for user in node.users)
        else:
            inputs = node.all_input_nodes
            holds = node.op == "call_function" and bool(inputs) and _is_pure(node)
            holds = holds and all(source in constant for source in inputs)
        if holds:
            constant.add(node)
    return frozenset(constant)


def _argument(node: Node, index: int, name: str) -> Any:
    return node.args[index] if index < len(node.args) else node.kwargs.get(name)


def _is_pure(node: Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags
