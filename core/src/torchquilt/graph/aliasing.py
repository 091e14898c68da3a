"""Aliasing: nodes of a graph that share memory, and the writes into it.

Where a tensor is quantized, its readers get a copy of what it was at that moment. That is right as long as no
operator writes into the tensor afterwards, or into the copy in its stead.

Importing this module does not import torch.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torchquilt._internal.connected import connected
from torchquilt.graph.node_values import is_overwritten, operator_of, returns_view, writes
from torchquilt.graph.subgraphs import SubgraphCall, call_of, placeholders

if TYPE_CHECKING:
    from torch.fx import Graph, Node


class Memory:
    """The memory behind the nodes of one graph, as the graph is now: edits are not followed.

    What may share memory counts as sharing it. A write in a subgraph of control flow is one at its call.
    """

    def __init__(self, graph: Graph) -> None:
        self._position = {node: number for number, node in enumerate(graph.nodes)}
        self._representatives: dict[Node, Node] = {}
        #: the representative of a memory → when it is written; empty for most graphs, which write nothing
        self._writes: dict[Node, list[int]] = {}
        written = {node: inputs for node in graph.nodes if (inputs := written_inputs(node))}
        if written:
            shared = ((node, source) for node in self._position for source in aliased_inputs(node))
            for memory in connected(self._position, shared):
                self._representatives.update(dict.fromkeys(memory, memory[0]))
        for node, inputs in written.items():
            for first in dict.fromkeys(map(self._representatives.__getitem__, inputs)):
                self._writes.setdefault(first, []).append(self._position[node])

    @property
    def is_written(self) -> bool:
        """Whether the graph writes into anything at all."""
        return bool(self._writes)

    def version(self, node: Node, reader: Node) -> int:
        """Number of writes into the memory of ``node`` before ``reader`` runs."""
        return bisect.bisect_left(self._times(node), self._position[reader])

    def output_can_be_copied(self, node: Node) -> bool:
        """Whether readers of ``node`` may get a copy: none writes into it or reads it after a later write."""
        times = self._times(node)
        next_write = bisect.bisect_right(times, self._position[node])
        if next_write == len(times):
            return True
        pending = [node]
        while pending:
            tensor = pending.pop()
            for user in tensor.users:
                if self._position[user] > times[next_write] or tensor in written_inputs(user):
                    return False
                items = user.users if call_of(user) is not None else ()
                pending.extend(view for view in (user, *items) if tensor in aliased_inputs(view))
        return True

    def edge_can_be_copied(self, producer: Node, user: Node) -> bool:
        """Whether ``user`` may get a copy of what ``producer`` returns."""
        if not self.is_written:
            return True
        if producer in written_inputs(user):
            return False
        return producer not in aliased_inputs(user) or self.output_can_be_copied(user)

    def _times(self, node: Node) -> Sequence[int]:
        """The positions of the writes into the memory of ``node``."""
        return self._writes.get(self._representatives[node], ()) if self._writes else ()


def written_inputs(node: Node) -> tuple[Node, ...]:
    """The inputs that a node writes into, itself or in a subgraph that it runs."""
    call = call_of(node)
    if call is not None:
        return tuple(_operands_for(call, is_overwritten))
    if not writes(node):
        return ()
    return _arguments(node, lambda alias: alias.is_write)


def aliased_inputs(node: Node) -> tuple[Node, ...]:
    """The nodes before ``node`` that may share memory with what it returns."""
    if node.op == "call_module":  # what stands in a prepared graph returns its input
        return tuple(node.all_input_nodes)
    if call_of(node) is not None:
        return ()  # it returns a list, whose items are told apart
    if operator_of(node) is None:
        return _aliases_of_item(node) if node.op == "call_function" else ()
    if not returns_view(node) and not writes(node):
        return ()
    # Those whose schema does not say that they may return their input have one tensor.
    return _arguments(node, lambda alias: True) or tuple(node.all_input_nodes[:1])


def _arguments(node: Node, matches: Any) -> tuple[Node, ...]:
    """The nodes in arguments of an operator with an alias annotation that matches."""
    found: list[Node] = []
    for index, argument in enumerate(operator_of(node)._schema.arguments):
        if argument.alias_info is None or not matches(argument.alias_info):
            continue
        value = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
        held = value if isinstance(value, (list, tuple)) else (value,)
        found += [item for item in held if hasattr(item, "all_input_nodes")]
    return tuple(found)


def _aliases_of_item(node: Node) -> tuple[Node, ...]:
    """The operands behind an item that control flow returned. Of other functions nothing is known."""
    source: Any = node.args[0] if node.args else None
    is_item = getattr(node.target, "__name__", "") == "getitem" and hasattr(source, "all_input_nodes")
    call = call_of(source) if is_item else None
    if call is None:
        return tuple(node.all_input_nodes)
    index: Any = node.args[1]
    found: list[Node] = []
    for graph in call.graphs():
        results: Any = graph.output_node().args[0]
        origins = _origins(results[index] if isinstance(results, (list, tuple)) else results)
        found += _operands_for(call, origins.__contains__)
    return tuple(dict.fromkeys(found))


def _origins(node: Any) -> set[Node]:
    """A node of a subgraph and all nodes before it that may share its memory."""
    seen: set[Node] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if hasattr(current, "all_input_nodes") and current not in seen:
            seen.add(current)
            pending.extend(aliased_inputs(current))
    return seen


def _operands_for(call: SubgraphCall, matches: Any) -> list[Node]:
    """The operands of a call for whose placeholder, in any of the subgraphs, a condition holds."""
    return [
        operand
        for index, operand in enumerate(call.operands)
        if hasattr(operand, "all_input_nodes")
        and any(matches(placeholders(graph)[index]) for graph in call.graphs())
    ]
