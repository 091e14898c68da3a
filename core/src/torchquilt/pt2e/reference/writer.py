"""Putting operators into a graph, with their values and with the metadata of what they stand for."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node, map_arg

from torchquilt.graph.edits import free_name, read_tensor, take_origin


class Writer:
    """Writes operators right before a node, on behalf of an operator of the float model.

    Args:
        model: whose graph is written to, and that stores constants.
        before: where the operators are put.
        served: the operator that they stand for; they take over where it comes from.
    """

    def __init__(self, model: GraphModule, before: Node, served: Node) -> None:
        self._model = model
        self._before = before
        self._served = served

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A call of an operator, with the value that it has for the fake tensors of the graph."""
        with self._model.graph.inserting_before(self._before):
            node = self._model.graph.call_function(target, args, kwargs)
        take_origin(node, self._served)
        with self._before.meta["val"].fake_mode:
            node.meta["val"] = target(*map_arg(args, lambda argument: argument.meta["val"]), **kwargs)
        return node

    def cast(self, node: Node, dtype: torch.dtype) -> Node:
        """The same numbers in another type, or the node itself where it has that type."""
        if node.meta["val"].dtype is dtype:
            return node
        return self(torch.ops.aten.to.dtype, node, dtype)

    def stored(self, value: torch.Tensor, name: str) -> Node:
        """Store a constant under a name like the one that is wanted, and read it."""
        node = read_tensor(self._model, free_name(self._model, name), value, self._before)
        take_origin(node, self._served)
        return node
