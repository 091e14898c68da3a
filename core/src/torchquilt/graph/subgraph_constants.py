"""Constants that bodies of control flow use: held by the body itself while the model is worked on.

Export hands weights into a body as operands, so inside they look like any other input. Whoever decides,
folds or quantizes there has to know that they are constants. :func:`close_bodies` therefore lets each body
read them itself, so that every region of the model looks like an exported model. :func:`open_bodies` hands
in what a body reads, in the form in which export left it and in which a model can be exported again.
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
from torchquilt.graph.subgraphs import BodyCall, Region, body_of, call_of, placeholders, regions


def close_bodies(model: GraphModule) -> GraphModule:
    """Let each body read the constants that are handed into it; changes ``model``.

    A constant is a stored tensor that nobody writes into and that is the same whenever the body runs. Where
    several calls run one body, it has to be the same in all of them.
    """
    for region in regions(model):
        _for_calls(region, _close)
    return model


def open_bodies(model: GraphModule) -> GraphModule:
    """Hand each stored tensor that a body reads into it as an operand; changes ``model``."""
    for region in reversed(regions(model)):  # what a body hands into another one it has to be handed itself
        _for_calls(region, _open)
    return model


def _for_calls(region: Region, change: Callable[[GraphModule, list[BodyCall]], None]) -> None:
    """Change the calls in a region, and the bodies that they run."""
    changed = _calls_by_bodies(region.module)
    for calls in changed:
        change(region.module, calls)
        for body in calls[0].bodies:
            outdate(body_of(body))
    if changed:
        outdate(region.module)


def _calls_by_bodies(module: GraphModule) -> list[list[BodyCall]]:
    """The calls in a graph, those that run the same bodies together.

    A body that is run together with different others is left out: its placeholders serve all of them.
    """
    found: dict[tuple[int, ...], list[BodyCall]] = {}
    for node in module.graph.nodes:
        call = call_of(node)
        if call is not None:
            found.setdefault(tuple(id(body_of(body)) for body in call.bodies), []).append(call)
    times = Counter(body for bodies in found for body in bodies)
    return [calls for bodies, calls in found.items() if all(times[body] == 1 for body in bodies)]


def _close(module: GraphModule, calls: list[BodyCall]) -> None:
    first = len(calls[0].operands) - len(calls[0].invariant)
    kept = []
    for offset, operand in enumerate(calls[0].invariant):
        if any(call.invariant[offset] is not operand for call in calls) or not _is_stored(operand):
            kept.append(offset)
            continue
        for body in calls[0].bodies:
            _read_inside(body_of(body), first + offset, operand, attribute(module, str(operand.target)))
    for body in calls[0].bodies:
        inside = body_of(body).graph
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


def _read_inside(body: GraphModule, index: int, operand: Node, value: torch.Tensor) -> None:
    """Let a body read a stored tensor where its placeholder of an index is read."""
    placeholder = placeholders(body.graph)[index]
    if not placeholder.users:
        return
    name = _name_for(body, str(operand.target), value)
    store_tensor(body, name, value)
    with body.graph.inserting_after(placeholders(body.graph)[-1]):
        read = body.graph.get_attr(name)
    take_origin(read, operand)
    read.meta["val"] = placeholder.meta.get("val", operand.meta.get("val"))
    placeholder.replace_all_uses_with(read)


def _open(module: GraphModule, calls: list[BodyCall]) -> None:
    bodies = [body_of(body) for body in calls[0].bodies]
    readers: dict[str, dict[GraphModule, Node]] = {}  # name in the graph around → who reads it in which body
    for body in bodies:
        for read in _stored_in(body):
            value = attribute(body, str(read.target))
            name = _name_for(module, str(read.target), value)
            store_tensor(module, name, value)
            readers.setdefault(name, {})[body] = read
    for name, reads in readers.items():
        served = next(iter(reads.values()))
        for call in calls:
            call.set_invariant((*call.invariant, _read_outside(call, name, served)))
        for body in bodies:
            inside = _new_placeholder(body, name, served)
            if body in reads:
                reads[body].replace_all_uses_with(inside)
                body.graph.erase_node(reads[body])
    for body in bodies:
        drop_unused_tensors(body)


def _stored_in(body: GraphModule) -> list[Node]:
    """The nodes of a body that read a stored tensor, one for each tensor."""
    first: dict[str, Node] = {}
    for node in body.graph.find_nodes(op="get_attr"):
        if not isinstance(attribute(body, str(node.target)), torch.Tensor):
            continue
        kept = first.setdefault(str(node.target), node)
        if kept is not node:
            node.replace_all_uses_with(kept)
            body.graph.erase_node(node)
    return [*first.values()]


def _new_placeholder(body: GraphModule, name: str, served: Node) -> Node:
    """A further input of a body, behind those that it has."""
    held = placeholders(body.graph)
    taken = {str(placeholder.target) for placeholder in held}
    wanted = name.replace(".", "_")
    if not wanted.isidentifier():  # it becomes an argument, and a module in a Sequential is called 0
        wanted = f"p_{wanted}"
    target = next(t for t in chain([wanted], (f"{wanted}_{i}" for i in count(1))) if t not in taken)
    place = body.graph.inserting_after(held[-1]) if held else body.graph.inserting_before()
    with place:
        inside = body.graph.placeholder(target)
    take_origin(inside, served)
    inside.meta["val"] = served.meta.get("val")
    return inside


def _read_outside(call: BodyCall, name: str, inside: Node) -> Node:
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
