"""Constants that subgraphs of control flow use: held by the subgraph itself while the model is worked on.

Export hands weights into a subgraph as operands, so inside they look like any other input. Deciding, folding
and quantizing need to know that they are constants. :func:`close_subgraphs` therefore lets each subgraph read
them itself, so that every region of the model looks like an exported model. :func:`open_subgraphs` hands in
what a subgraph reads, in the form in which export left it and in which a model can be exported again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import chain, count
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torchquilt.graph.code_generation import outdate
from torchquilt.graph.edits import (
    drop_unused_tensors,
    erase_unused,
    free_name,
    store_tensor,
    take_origin,
)
from torchquilt.graph.node_values import attribute, is_overwritten, tensor_of
from torchquilt.graph.subgraphs import Region, SubgraphCall, call_of, placeholders, regions, subgraph_of


def close_subgraphs(model: GraphModule) -> GraphModule:
    """Let each subgraph read the constants that are handed into it; changes ``model``.

    A constant is a stored tensor that is never written into and that is the same whenever the subgraph runs.
    Where several calls run one subgraph, it has to be the same in all of them.
    """
    for region in regions(model):
        _for_calls(region, _close)
    return model


def open_subgraphs(model: GraphModule) -> GraphModule:
    """Hand each stored tensor that a subgraph reads into it as an operand; changes ``model``."""
    # What a subgraph hands into another one it has to be handed itself.
    for region in reversed(regions(model)):
        _for_calls(region, _open)
    return model


def _for_calls(region: Region, change: Callable[[GraphModule, list[SubgraphCall]], None]) -> None:
    """Change the calls in a region, and the subgraphs that they run."""
    changed = _calls_by_subgraphs(region.module)
    for calls in changed:
        change(region.module, calls)
        for subgraph in calls[0].subgraphs:
            outdate(subgraph_of(subgraph))
    if changed:
        outdate(region.module)


def _calls_by_subgraphs(module: GraphModule) -> list[list[SubgraphCall]]:
    """The calls in a graph, those that run the same subgraphs together.

    A subgraph that is run together with different others is left out: its placeholders serve all of them.
    """
    found: dict[tuple[int, ...], list[SubgraphCall]] = {}
    for node in module.graph.nodes:
        call = call_of(node)
        if call is not None:
            found.setdefault(tuple(id(subgraph_of(subgraph)) for subgraph in call.subgraphs), []).append(call)
    times = Counter(subgraph for subgraphs in found for subgraph in subgraphs)
    return [
        calls for subgraphs, calls in found.items() if all(times[subgraph] == 1 for subgraph in subgraphs)
    ]


def _close(module: GraphModule, calls: list[SubgraphCall]) -> None:
    first = len(calls[0].operands) - len(calls[0].invariant)
    kept = []
    for offset, operand in enumerate(calls[0].invariant):
        if any(call.invariant[offset] is not operand for call in calls) or not _is_stored(operand):
            kept.append(offset)
            continue
        for subgraph in calls[0].subgraphs:
            _read_inside(
                subgraph_of(subgraph), first + offset, operand, attribute(module, str(operand.target))
            )
    for subgraph in calls[0].subgraphs:
        inside = subgraph_of(subgraph).graph
        for index, placeholder in enumerate(placeholders(inside)):
            if index >= first and index - first not in kept:
                inside.erase_node(placeholder)
    for call in calls:
        before = call.invariant
        call.set_invariant(tuple(before[offset] for offset in kept))
        for operand in before:
            if isinstance(operand, Node):
                erase_unused(operand)


def _is_stored(operand: Any) -> bool:
    if not isinstance(operand, Node) or operand.op != "get_attr":
        return False
    return tensor_of(operand) is not None and not is_overwritten(operand)


def _read_inside(subgraph: GraphModule, index: int, operand: Node, value: torch.Tensor) -> None:
    """Let a subgraph read a stored tensor where its placeholder of an index is read."""
    placeholder = placeholders(subgraph.graph)[index]
    if not placeholder.users:
        return
    name = _name_for(subgraph, str(operand.target), value)
    store_tensor(subgraph, name, value)
    with subgraph.graph.inserting_after(placeholders(subgraph.graph)[-1]):
        read = subgraph.graph.get_attr(name)
    take_origin(read, operand)
    read.meta["val"] = placeholder.meta.get("val", operand.meta.get("val"))
    placeholder.replace_all_uses_with(read)


def _open(module: GraphModule, calls: list[SubgraphCall]) -> None:
    subgraphs = [subgraph_of(subgraph) for subgraph in calls[0].subgraphs]
    # Name in the graph around → the nodes that read it, by subgraph.
    readers: dict[str, dict[GraphModule, Node]] = {}
    for subgraph in subgraphs:
        for read in _stored_in(subgraph):
            value = attribute(subgraph, str(read.target))
            name = _name_for(module, str(read.target), value)
            store_tensor(module, name, value)
            readers.setdefault(name, {})[subgraph] = read
    for name, reads in readers.items():
        served = next(iter(reads.values()))
        for call in calls:
            call.set_invariant((*call.invariant, _read_outside(call, name, served)))
        for subgraph in subgraphs:
            inside = _new_placeholder(subgraph, name, served)
            if subgraph in reads:
                reads[subgraph].replace_all_uses_with(inside)
                subgraph.graph.erase_node(reads[subgraph])
    for subgraph in subgraphs:
        drop_unused_tensors(subgraph)


def _stored_in(subgraph: GraphModule) -> list[Node]:
    """The nodes of a subgraph that read a stored tensor, one for each tensor."""
    first: dict[str, Node] = {}
    for node in subgraph.graph.find_nodes(op="get_attr"):
        if not isinstance(attribute(subgraph, str(node.target)), torch.Tensor):
            continue
        kept = first.setdefault(str(node.target), node)
        if kept is not node:
            node.replace_all_uses_with(kept)
            subgraph.graph.erase_node(node)
    return [*first.values()]


def _new_placeholder(subgraph: GraphModule, name: str, served: Node) -> Node:
    """A further input of a subgraph, behind those that it has."""
    held = placeholders(subgraph.graph)
    taken = {str(placeholder.target) for placeholder in held}
    wanted = name.replace(".", "_")
    if not wanted.isidentifier():  # it becomes an argument, and a module in a Sequential is called 0
        wanted = f"p_{wanted}"
    target = next(t for t in chain([wanted], (f"{wanted}_{i}" for i in count(1))) if t not in taken)
    insertion = subgraph.graph.inserting_after(held[-1]) if held else subgraph.graph.inserting_before()
    with insertion:
        inside = subgraph.graph.placeholder(target)
    take_origin(inside, served)
    inside.meta["val"] = served.meta.get("val")
    return inside


def _read_outside(call: SubgraphCall, name: str, inside: Node) -> Node:
    with call.node.graph.inserting_before(call.node):
        read = call.node.graph.get_attr(name)
    take_origin(read, inside)
    read.meta["val"] = inside.meta.get("val")
    return read


def _name_for(module: GraphModule, wanted: str, value: torch.Tensor) -> str:
    """The wanted name if it is free or holds the very same tensor, otherwise one like it."""
    try:
        held = attribute(module, wanted)
    except AttributeError:
        return wanted
    return wanted if _is_same(held, value) else free_name(module, wanted)


def _is_same(held: Any, value: torch.Tensor) -> bool:
    if not isinstance(held, torch.Tensor) or held.dtype != value.dtype or held.shape != value.shape:
        return False
    return held is value or torch.equal(held, value)
