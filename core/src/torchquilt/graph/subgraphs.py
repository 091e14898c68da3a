"""Subgraphs of control flow: the graphs inside of a graph, who runs them, and what is handed into them.

``cond``, ``scan``, ``while_loop``, ``map`` and the regions under ``torch.no_grad()`` or autocast are calls of
higher-order operators. Export stores the graph of a subgraph as a submodule, reads it with a ``get_attr``
node and hands in everything that the subgraph uses as operands, weights among them. All of them have one
form: ``operator(…, subgraphs, operands)``, where the placeholders of each subgraph are the operands,
flattened. They differ only in what :data:`OPERATORS` says.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from torch.fx import Graph, GraphModule, Node


@attrs.frozen
class HigherOrderOperator:
    """Signature of a higher-order operator: its subgraphs and its operands.

    Args:
        name: its name, as ``torch.ops.higher_order`` has it.
        operands: index of the first argument behind the subgraphs.
        invariant: index of the first argument that holds operands which are the same whenever the subgraph
            runs. What a loop carries or takes slices of stands before them.
        spread: the invariant operands are arguments of their own instead of one list or tuple.
    """

    name: str
    operands: int
    invariant: int
    spread: bool = False


#: The operators whose subgraphs are entered, by name. Subgraphs of others are left as they are.
OPERATORS = {
    operator.name: operator
    for operator in (
        HigherOrderOperator("cond", operands=3, invariant=3),
        HigherOrderOperator("scan", operands=1, invariant=3),
        HigherOrderOperator("while_loop", operands=2, invariant=3),
        HigherOrderOperator("map_impl", operands=1, invariant=2),
        HigherOrderOperator("wrap_with_set_grad_enabled", operands=2, invariant=2, spread=True),
        HigherOrderOperator("wrap_with_autocast", operands=5, invariant=5, spread=True),
    )
}


@attrs.frozen(eq=False)
class SubgraphCall:
    """One call of a higher-order operator.

    Args:
        node: the call.
        operator: how it takes its operands.
        subgraphs: the ``get_attr`` nodes of its subgraphs.
    """

    node: Node
    operator: HigherOrderOperator
    subgraphs: tuple[Node, ...]

    @property
    def operands(self) -> tuple[Any, ...]:
        """Arguments of the call, one for each placeholder of each subgraph."""
        return tuple(_leaves(self.node.args[self.operator.operands :]))

    @property
    def invariant(self) -> tuple[Any, ...]:
        """The last of the operands: those that are the same whenever a subgraph runs."""
        return tuple(_leaves(self.node.args[self.operator.invariant :]))

    def graphs(self) -> tuple[Graph, ...]:
        """The graphs of its subgraphs."""
        return tuple(subgraph_of(node).graph for node in self.subgraphs)

    def set_invariant(self, operands: tuple[Any, ...]) -> None:
        """Hand in other operands instead of the invariant ones. Does not change the placeholders."""
        before = self.node.args[: self.operator.invariant]
        if self.operator.spread:
            self.node.args = (*before, *operands)
        else:
            held = self.node.args[self.operator.invariant]
            self.node.args = (*before, [*operands] if isinstance(held, list) else operands)


def call_of(node: Node) -> SubgraphCall | None:
    """The call of a higher-order operator whose subgraphs are entered, or None."""
    # Most nodes call operators of ATen, which have a schema; to ask for their namespace would take longer.
    if node.op != "call_function" or hasattr(node.target, "_schema"):
        return None
    if getattr(node.target, "namespace", None) != "higher_order":
        return None
    operator = OPERATORS.get(str(node.target))
    if operator is None:
        return None
    found = tuple(_subgraphs_among(node.args[: operator.operands]))
    call = SubgraphCall(node, operator, found)
    takes = len(call.operands)
    fits = all(len(placeholders(graph)) == takes for graph in call.graphs())
    return call if found and fits else None


def subgraph_of(node: Node) -> GraphModule:
    """The subgraph that a ``get_attr`` node reads."""
    held: Any = node.graph.owning_module
    for name in str(node.target).split("."):
        held = getattr(held, name)
    subgraph: GraphModule = held
    return subgraph


def placeholders(graph: Graph) -> tuple[Node, ...]:
    """The inputs of a graph, in order."""
    return tuple(graph.find_nodes(op="placeholder"))


def handed_in(user: Node, tensor: Node) -> tuple[Node, ...]:
    """The placeholders that stand for ``tensor`` in the subgraphs that ``user`` runs; none for other
    users.
    """
    call = call_of(user)
    if call is None:
        return ()
    positions = [index for index, operand in enumerate(call.operands) if operand is tensor]
    return tuple(placeholders(graph)[index] for graph in call.graphs() for index in positions)


@attrs.frozen(eq=False)
class Region:
    """A graph of the model: the outermost one, or a subgraph.

    Args:
        path: of its module within the model, ``""`` for the outermost one.
        module: it.
        caller: what runs it, in the graph around it; None for the outermost one.
    """

    path: str
    module: GraphModule
    caller: Node | None = None

    def name_of(self, node: Node) -> str:
        """The name of a node, with the path of the region before it."""
        return f"{self.path}.{node.name}" if self.path else node.name


def regions(model: GraphModule) -> tuple[Region, ...]:
    """The model and all subgraphs in it, each once, what runs a subgraph before it."""
    seen = {id(model)}
    found = [Region("", model)]
    for region in found:  # grows while it is walked
        for inner in _subgraphs_in(region):
            if id(inner.module) not in seen:
                seen.add(id(inner.module))
                found.append(inner)
    return tuple(found)


def name_operands(region: Region, names: dict[Node, str]) -> None:
    """Carry names from the operands of a subgraph to the placeholders that stand for them.

    Args:
        region: a subgraph; for the outermost region there is nothing to do.
        names: node → name of what it reads or stands for; is added to.
    """
    call = call_of(region.caller) if region.caller is not None else None
    if call is not None:
        for placeholder, operand in zip(placeholders(region.module.graph), call.operands, strict=True):
            if operand in names:
                names[placeholder] = names[operand]


def nodes_of(model: GraphModule) -> Iterator[Node]:
    """The nodes of the model and of all subgraphs in it."""
    for region in regions(model):
        yield from region.module.graph.nodes


def _subgraphs_in(region: Region) -> Iterator[Region]:
    for node in region.module.graph.find_nodes(op="get_attr"):
        caller = next((user for user in node.users if call_of(user) is not None), None)
        if caller is not None and _is_subgraph(node):
            path = f"{region.path}.{node.target}" if region.path else str(node.target)
            yield Region(path, subgraph_of(node), caller)


def _subgraphs_among(arguments: tuple[Any, ...]) -> Iterator[Node]:
    return filter(_is_subgraph, arguments)


def _is_subgraph(value: Any) -> bool:
    if getattr(value, "op", None) != "get_attr":
        return False
    try:
        return hasattr(subgraph_of(value), "graph")
    except AttributeError:
        return False  # the graph reads something that is gone, which is for others to say


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value
