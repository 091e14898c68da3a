"""A pytest plugin that lowers for the toy: it knows linear layers, and "lowers" them by running the model."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule

from torchquilt.testing.lowering import Lowering


def lower(model: GraphModule, inputs: tuple[Any, ...]) -> torch.Tensor:
    """Run the model, if it is one for the toy."""
    for node in model.graph.nodes:
        if node.target is torch.ops.aten.conv2d.default:
            raise RuntimeError("the toy has no convolutions")
    found: torch.Tensor = model(*inputs)
    return found


def pytest_torchquilt_lowering() -> dict[str, Lowering]:
    """Say how to lower for the toy."""
    return {"toy": lower}
