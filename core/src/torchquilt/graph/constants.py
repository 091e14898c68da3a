"""The values of nodes that are computed from stored tensors alone."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torchquilt.graph.values import attribute


def constant_value(model: GraphModule, node: Node, identities: Container[str] = ()) -> torch.Tensor:
    """Compute the value of a node for which ``is_constant`` holds, without gradients.

    Args:
        model: the module that holds the tensors.
        node: the node.
        identities: names of submodules that return their only input.
    """
    values: dict[Node, Any] = {}

    def compute(current: Node) -> Any:
        if current not in values:
            if current.op == "get_attr":
                values[current] = attribute(model, str(current.target))
            elif current.op == "call_module" and current.target in identities:
                values[current] = compute(current.all_input_nodes[0])
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
