"""Inlining of regions under ``torch.no_grad()`` or autocast that compute the same without it.

Export keeps operators under ``torch.no_grad()`` or autocast as a region. torch inlines regions when it
decomposes a program, and then gives every operator the origin of the call. So regions are inlined here, with
the origins of their operators. A region in which autocast changes dtypes stays.

Importing this module does not import torch.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from torchquilt.graph.subgraphs import OPERATORS

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Graph, GraphModule, Node

_SET_GRAD, _AUTOCAST = "wrap_with_set_grad_enabled", "wrap_with_autocast"


@attrs.frozen(eq=False)
class Inlined:
    """A program without regions that change nothing.

    Args:
        program: the new program.
        earlier: name of a node that was renamed, with its region → its name in the old program.
    """

    program: ExportedProgram
    earlier: Mapping[str, str]


def inlined(program: ExportedProgram) -> Inlined:
    """Write each region that changes nothing into the graph around it; the program is left as it is."""
    from torchquilt.graph.edits import with_graph

    if not any(_subgraph_of(node, module) for _, module in _graphs(program) for node in module.graph.nodes):
        return Inlined(program, {})
    writing = _Writing()
    written = writing.written(program.graph_module, "", "")
    return Inlined(with_graph(program, written.graph, root=written), writing.earlier)


class _Writing:
    """Copies graphs, and writes regions into the copies."""

    def __init__(self) -> None:
        self.earlier: dict[str, str] = {}

    def written(self, module: GraphModule, path: str, before: str) -> GraphModule:
        """The copy of a graph and of those that it reads.

        Args:
            module: it has the graph.
            path: of the copy, within the new program.
            before: of ``module``, within the old program.
        """
        from torch.fx import GraphModule

        from torchquilt.graph.edits import copied_graph

        graph, _ = copied_graph(module.graph)
        made = copy.copy(module)
        made._modules = dict(module._modules)
        self._write_in(graph, made, module, path, before)
        for node in graph.find_nodes(op="get_attr"):
            inner = made._modules.get(str(node.target))
            if isinstance(inner, GraphModule):
                there, then = _joined(path, str(node.target)), _joined(before, str(node.target))
                made._modules[str(node.target)] = self.written(inner, there, self.earlier.get(there, then))
        for node in graph.nodes:
            here = _joined(path, node.name)
            if here not in self.earlier and before != path:
                self.earlier[here] = _joined(before, node.name)
        result = GraphModule(made, graph)
        result.meta.update(module.meta)
        return result

    def _write_in(self, graph: Graph, made: Any, module: GraphModule, path: str, before: str) -> None:
        """Write the regions of a graph into it, and those in them."""
        found = True
        while found:
            found = False
            for call in list(graph.nodes):
                subgraph = _subgraph_of(call, made)
                if subgraph is not None:
                    self._replace(graph, made, call, subgraph, path, before)
                    found = True

    def _replace(
        self, graph: Graph, made: Any, call: Node, subgraph: GraphModule, path: str, before: str
    ) -> None:
        handed = OPERATORS[str(call.target)].operands
        region: Any = call.args[handed - 1]
        region_path = self.earlier.get(_joined(path, str(region.target)), _joined(before, str(region.target)))
        values: dict[Node, Any] = dict(
            zip(subgraph.graph.find_nodes(op="placeholder"), call.args[handed:], strict=True)
        )
        taken = {node.name for node in graph.nodes}
        with graph.inserting_before(call):
            for node in subgraph.graph.nodes:
                if node.op in ("placeholder", "output"):
                    continue
                one: Any = graph.node_copy(node, values.__getitem__)
                values[node] = one
                one.name = _free(node.name, taken)
                # Export gives all operators of a region the origin of the call, which would make them one.
                one.meta = {key: value for key, value in node.meta.items() if key != "from_node"}
                taken.add(one.name)
                self.earlier[_joined(path, one.name)] = _joined(region_path, node.name)
                if node.op == "get_attr":
                    one.target = _free(f"{region.target}_{node.target}".replace(".", "_"), made._modules)
                    made._modules[one.target] = subgraph.get_submodule(str(node.target))
                    self.earlier[_joined(path, one.target)] = _joined(region_path, str(node.target))
        self._hand_on(graph, call, [values[node] for node in _outputs(subgraph)], path)
        graph.erase_node(call)
        if not region.users:
            graph.erase_node(region)

    def _hand_on(self, graph: Graph, call: Node, outputs: list[Node], path: str) -> None:
        """Let readers of the call read the outputs of the region, which keep the names of the signature."""
        for item in list(call.users):
            number: Any = item.args[1]
            value, name = outputs[number], item.name
            item.replace_all_uses_with(value)
            graph.erase_node(item)
            self.earlier[_joined(path, name)] = self.earlier.pop(_joined(path, value.name))
            value.name = name


def _subgraph_of(node: Node, module: Any) -> GraphModule | None:
    """The region that a node calls and that can be written into the graph around it."""
    name = str(node.target)
    if node.op != "call_function" or name not in (_SET_GRAD, _AUTOCAST):
        return None
    if name == _AUTOCAST and node.args[2] and node.args[0] == "cpu":
        return None
    region: Any = node.args[OPERATORS[name].operands - 1]
    subgraph: GraphModule = module._modules[str(region.target)]
    items = [user.args[1] for user in node.users if user.target is operator.getitem]
    outputs = _outputs(subgraph)
    are_own = len({*outputs}) == len(outputs) and all(one.op == "call_function" for one in outputs)
    is_taken_apart = len({*items}) == len(items) == len(node.users)
    reads_graphs = all(
        str(one.target) in subgraph._modules for one in subgraph.graph.find_nodes(op="get_attr")
    )
    return subgraph if are_own and is_taken_apart and reads_graphs else None


def _outputs(subgraph: GraphModule) -> list[Any]:
    (returned,) = subgraph.graph.output_node().args
    return list(returned) if isinstance(returned, (list, tuple)) else [returned]


def _graphs(program: ExportedProgram) -> Iterator[tuple[str, GraphModule]]:
    from torch.fx import GraphModule

    for name, module in program.graph_module.named_modules():
        if isinstance(module, GraphModule):
            yield name, module


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _free(name: str, taken: Any) -> str:
    number, found = 0, name
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    return found
