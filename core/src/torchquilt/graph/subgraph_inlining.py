"""Subgraphs that give nothing back, written out where they are run.

A region under ``torch.no_grad()`` that only writes into a buffer is exported as a call without results. torch
can save a program with such a call, and cannot load it again (2.13: "missing val field"). Gradients mean
nothing to a quantized model, so the operators of such a region can as well stand in the graph around it.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from torchquilt.graph.code_generation import outdate
from torchquilt.graph.edits import erase_unused, free_name, store_tensor
from torchquilt.graph.node_values import attribute
from torchquilt.graph.subgraphs import SubgraphCall, call_of, placeholders, regions, subgraph_of

#: What these regions change while they run has no meaning without gradients.
_WITHOUT_MEANING = "wrap_with_set_grad_enabled"


def inline_silent_subgraphs(model: GraphModule) -> GraphModule:
    """Write out each subgraph under ``torch.no_grad()`` that returns nothing; changes ``model``."""
    for region in reversed(regions(model)):  # a subgraph that is written out may hold calls that were, too
        calls = [call for call in map(call_of, [*region.module.graph.nodes]) if call and _is_silent(call)]
        for call in calls:
            erase_unused(call.node)
            if not call.node._erased:  # it does something
                _write_out(region.module, call)
        if calls:
            outdate(region.module)
    return model


def is_without_results(node: Node) -> bool:
    """Whether a node is a call of a subgraph that returns nothing at all."""
    call = call_of(node)
    return call is not None and all(not graph.output_node().all_input_nodes for graph in call.graphs())


def _is_silent(call: SubgraphCall) -> bool:
    return call.operator.name == _WITHOUT_MEANING and is_without_results(call.node)


def _write_out(module: GraphModule, call: SubgraphCall) -> None:
    subgraph = subgraph_of(call.subgraphs[0])
    inside: dict[Node, object] = dict(zip(placeholders(subgraph.graph), call.operands, strict=True))
    with module.graph.inserting_before(call.node):
        for node in subgraph.graph.nodes:
            if node.op == "get_attr":
                inside[node] = _read(module, subgraph, node)
            elif node.op not in ("placeholder", "output"):
                inside[node] = module.graph.node_copy(node, inside.__getitem__)  # type: ignore[arg-type]
    module.graph.erase_node(call.node)
    erase_unused(call.subgraphs[0])
    if all(read.target != call.subgraphs[0].target for read in module.graph.find_nodes(op="get_attr")):
        module.delete_submodule(str(call.subgraphs[0].target))


def _read(module: GraphModule, subgraph: GraphModule, node: Node) -> Node:
    """Read outside what ``node`` reads inside: a tensor, or the subgraph of a further call."""
    held = attribute(subgraph, str(node.target))
    name = free_name(module, str(node.target).replace(".", "_"))
    if isinstance(held, torch.Tensor):
        store_tensor(module, name, held)
    else:
        module.add_module(name, held)
    read = module.graph.get_attr(name)
    read.meta = dict(node.meta)
    return read
