"""Values between the steps of a lowered program, held against the float model as it runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from torchquilt._internal.torch_defaults import default_global_state
from torchquilt._internal.torch_private import pytree
from torchquilt.accuracy.comparison_values import ComparedValue
from torchquilt.accuracy.error_statistics import ErrorStatistics
from torchquilt.graph.cost import shape_of
from torchquilt.graph.edits import copy_model
from torchquilt.graph.node_values import is_float_tensor
from torchquilt.graph.shared_storage import written_tensors
from torchquilt.lowering import LoweredProgram


class ProgramValues:
    """Errors of the values between the steps of a program, taken in batch by batch.

    Args:
        expected: the float model.
        program: it.
    """

    def __init__(self, expected: GraphModule, program: LoweredProgram) -> None:
        self._program = program
        self._operations = {one.node: one for one in program.operations if one.output is not None}
        computed = frozenset(one.node for one in program.operations)
        self._read_at = {
            node.name: _last_fused(node, computed).name
            for node in expected.graph.nodes
            if node.name in self._operations and is_float_tensor(node)
        }
        self._expected = expected
        self._errors: dict[str, ErrorStatistics] = defaultdict(ErrorStatistics)

    def update(self, batch: object, args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
        """Take in a batch.

        Args:
            batch: as the program takes it.
            args: the same, by position, as the float model takes it.
            kwargs: likewise, by name.
        """
        if not self._read_at:
            return
        expected = _values(self._expected, frozenset(self._read_at.values()), args, kwargs)
        found = self._program.intermediate_values(batch)
        for name, value in found.items():
            reference = expected.get(self._read_at.get(name, ""))
            if reference is not None and reference.shape == value.shape:
                self._errors[name].update(reference, value)

    def compared(self) -> tuple[ComparedValue, ...]:
        """The error of each value, the worst first."""
        rows = (
            ComparedValue(name, one.op, one.module, one.delegate, one.arithmetic, statistics.figures())
            for name, statistics in self._errors.items()
            for one in (self._operations[name],)
        )
        return tuple(sorted(rows, key=lambda row: row.error.sqnr))


def _last_fused(node: Node, computed: frozenset[str]) -> Node:
    """The last of the operators that are computed together with one: the program has no operator of its own.

    A BatchNorm that was folded, and an activation that its range makes superfluous, are such.

    Args:
        node: of the float model, whose value the program has.
        computed: names of the nodes that the program has an operator for.
    """
    while len(node.users) == 1:
        (user,) = node.users
        if user.op != "call_function" or user.name in computed or shape_of(user) != shape_of(node):
            break
        node = user
    return node


class _Keeping(Interpreter):
    """A run of a float model that keeps what some nodes return. Its buffers stay as they are."""

    def __init__(self, model: GraphModule, names: frozenset[str]) -> None:
        super().__init__(copy_model(model) if written_tensors(model) else model)
        self._names = names
        self.kept: dict[str, torch.Tensor] = {}

    def run_node(self, n: Node) -> Any:
        """Run a node, and keep its value if it is asked for."""
        value = super().run_node(n)
        if n.name in self._names and isinstance(value, torch.Tensor):
            self.kept[n.name] = value.clone()
        return value


def _values(
    model: GraphModule, names: frozenset[str], args: Iterable[Any], kwargs: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Values of some nodes of a model."""
    run = _Keeping(model, names)
    with default_global_state(), torch.no_grad():
        run.run(*pytree.tree_leaves((tuple(args), dict(kwargs))), enable_io_processing=False)
    return run.kept
