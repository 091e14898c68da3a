"""Memory layout: a program computes on contiguous tensors.

Some kernels of the runtime are wrong on tensors in channels_last (flip, cat, layer norm, topk, gather), and
others refuse them (cumsum, index_select). So only inputs and outputs of a program have the layout that the
model was exported with. Delegates order images within their parts by themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.export.graph_signature import OutputKind, TensorArgument

from torchquilt.backend import FakeTensor, copied_graph, regions, with_graph
from torchquilt_executorch.signature import inputs_of, is_in_channels_last

if TYPE_CHECKING:
    from torch.export import ExportedProgram, ExportGraphSignature
    from torch.fx import Graph, Node

#: It reads memory by strides, so its result depends on the layout.
_BY_STRIDES = torch.ops.aten.as_strided.default


def computed_contiguous(program: ExportedProgram) -> ExportedProgram:
    """The program with copies behind its inputs and before its outputs, and contiguous tensors between.

    Args:
        program: it is not changed. Shares its tensors with the result, but those in channels_last.
    """
    nodes = list(_nodes(program))
    if not any(map(_orders, nodes)) or any(node.target is _BY_STRIDES for node in nodes):
        return program
    graph, copies = copied_graph(program.graph)
    signature = copy.deepcopy(program.graph_signature)
    inputs = {copies[node]: None for node in inputs_of(program)}
    for node in graph.nodes:
        if node not in inputs:
            _forget_order(node)
    _order_outputs(graph, signature)
    _order_inputs(graph, [node for node in inputs if _in_channels_last(node)])
    made = with_graph(program, graph, signature)
    made._state_dict = {name: _contiguous(value) for name, value in program.state_dict.items()}
    made._constants = {name: _contiguous(value) for name, value in program.constants.items()}
    return made


def _nodes(program: ExportedProgram) -> Iterator[Node]:
    for region in regions(program.graph_module):
        yield from region.module.graph.nodes


def _orders(node: Node) -> bool:
    """Whether a node is an input in channels_last, or copies into channels_last. A view copies nothing."""
    is_given = node.op == "placeholder" and _in_channels_last(node)
    return is_given or node.kwargs.get("memory_format") is torch.channels_last


def _in_channels_last(node: Node) -> bool:
    return is_in_channels_last(node.meta.get("val"))


def _order_inputs(graph: Graph, inputs: list[Node]) -> None:
    """Read contiguous copies of inputs in channels_last."""
    last = [*graph.find_nodes(op="placeholder")][-1]
    for node in inputs:
        readers = list(node.users)
        with graph.inserting_after(last):
            ordered = _copy(graph, node, torch.contiguous_format)
        for reader in readers:
            reader.replace_input_with(node, ordered)


def _order_outputs(graph: Graph, signature: ExportGraphSignature) -> None:
    """Return copies in channels_last of the outputs that the model returns so."""
    output = graph.output_node()
    values: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    for number, spec in enumerate(signature.output_specs):
        node = values[number]
        if spec.kind is OutputKind.USER_OUTPUT and hasattr(node, "meta") and _in_channels_last(node):
            with graph.inserting_before(output):
                values[number] = _copy(graph, node, torch.channels_last)
            spec.arg = TensorArgument(values[number].name)
    output.args = (tuple(values),)


def _copy(graph: Graph, node: Node, layout: torch.memory_format) -> Node:
    made = graph.call_function(torch.ops.aten.clone.default, (node,), {"memory_format": layout})
    value = node.meta["val"]
    with value.fake_mode:
        made.meta["val"] = value.clone(memory_format=layout)
    return made


def _forget_order(node: Node) -> None:
    """Make a stored tensor contiguous, and an operator that copies into channels_last copy contiguously."""
    if node.op == "placeholder":
        node.meta["val"] = _contiguous(node.meta.get("val"))
    if node.kwargs.get("memory_format") is torch.channels_last:
        node.kwargs = {**node.kwargs, "memory_format": torch.contiguous_format}


def _contiguous(value: Any) -> Any:
    if not is_in_channels_last(value):
        return value
    if isinstance(value, FakeTensor):
        with value.fake_mode:
            return value.contiguous()
    made = value.detach().contiguous()
    return torch.nn.Parameter(made, requires_grad=False) if isinstance(value, torch.nn.Parameter) else made
