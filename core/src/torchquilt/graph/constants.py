"""The values of nodes that are computed from stored tensors alone."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from torchquilt.graph.values import attribute


def constant_value(model: GraphModule, node: Node) -> torch.Tensor:
    """Compute the value of a node for which ``is_constant`` holds, without gradients."""
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
