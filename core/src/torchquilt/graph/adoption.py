"""Adopting a graph that somebody else made: it is called like the one before it, and its nodes are complete.

A quantizer may copy a graph, build one node by node, decompose it with fx or export it once more. What such a
graph module usually lacks is the calling convention of the exported one, its checks of the inputs, and
metadata of the nodes. What can be completed is completed; the rest is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node, map_arg

from torchquilt._internal.torch_private import FakeTensor, pytree
from torchquilt.errors import QuantizerError
from torchquilt.graph.code_generation import outdate
from torchquilt.graph.edits import fake_of, keep_out_of_state
from torchquilt.graph.invariants import check_invariants
from torchquilt.graph.node_values import attribute, tensor_of
from torchquilt.graph.provenance import complete_provenance
from torchquilt.graph.signature import take_checks
from torchquilt.graph.subgraphs import placeholders, regions


def adopt(made: GraphModule, convention: Convention, known: frozenset[Node], step: str) -> GraphModule:
    """Let a graph that was made of another one take its place; changes ``made`` only.

    Args:
        made: the graph module that replaces another one, or the same one, edited.
        convention: how the one before it was called.
        known: the nodes that it had, of which all is known.
        step: what made it, for errors.

    Raises:
        QuantizerError: it takes other inputs or returns other outputs.
        ModelError: an invariant does not hold for a node that is new.
    """
    new = {node for region in regions(made) for node in region.module.graph.nodes} - known
    if new:
        convention.give_values(made)
        for region in regions(made):
            _complete_values(region.module, new)
    convention.give(made)
    if new:
        complete_provenance(made)
        check_invariants(made, step, new)
    return made


class Convention:
    """Calling convention of a graph module: its inputs, its outputs and their checks. Kept while others edit
    it.

    Args:
        model: it.
    """

    def __init__(self, model: GraphModule) -> None:
        self._model = model
        self._inputs = _inputs(model.graph)
        self._outputs = _outputs(model.graph)
        self._codegen = model.graph._codegen
        self._values = {str(node.target): node.meta.get("val") for node in placeholders(model.graph)}

    def give_values(self, made: GraphModule) -> None:
        """Let the inputs of another graph module have the recorded values of these, where they have none."""
        for node in placeholders(made.graph):
            if self._values.get(str(node.target)) is not None:
                node.meta.setdefault("val", self._values[str(node.target)])

    def give(self, made: GraphModule) -> None:
        """Let another graph module, or the same one after edits, be called like this.

        Raises:
            QuantizerError: it has other inputs or outputs.
        """
        self._check_inputs(made)
        outputs = _outputs(made.graph)
        if outputs != self._outputs:
            raise _called_otherwise("outputs", "; ".join(self._outputs), "; ".join(outputs))
        if made.graph._codegen is not self._codegen:
            made.graph.set_codegen(self._codegen)
            outdate(made)
        if made is not self._model:
            take_checks(made, self._model)
            keep_out_of_state(self._model, made)

    def _check_inputs(self, made: GraphModule) -> None:
        """Refuse other inputs; call them as they were called, where they are the same but for their names.

        A graph module that is made of nodes takes its inputs one by one, and knows nothing of the structure
        that export recorded. What is exported once more has that, and maybe other names.
        """
        inputs, theirs = _inputs(made.graph), _structure(made.graph._codegen)
        own = _structure(self._codegen)
        same_structure = theirs is not None and theirs == own
        if inputs != self._inputs and not (same_structure and len(inputs) == len(self._inputs)):
            raise _called_otherwise("inputs", ", ".join(self._inputs), ", ".join(inputs))
        if theirs is not None and not same_structure:
            raise _called_otherwise("inputs", str(own), str(theirs))
        for node, name in zip(placeholders(made.graph), self._inputs, strict=True):
            node.target = name


def _inputs(graph: Graph) -> list[str]:
    return [str(node.target) for node in placeholders(graph)]


def _outputs(graph: Graph) -> list[str]:
    """Outputs of a graph, one text for each value: a dtype and the number of dimensions, as far as known."""
    found = []
    for value in pytree.tree_leaves(graph.output_node().args):
        tensor = tensor_of(value) if isinstance(value, Node) else None
        found.append("no tensor" if tensor is None else f"{tensor.dtype}, {tensor.dim()} dimensions")
    return found


def _structure(codegen: Any) -> tuple[Any, Any] | None:
    info = getattr(codegen, "pytree_info", None)
    return None if info is None else (info.in_spec, info.out_spec)


def _called_otherwise(what: str, expected: str, got: str) -> QuantizerError:
    return QuantizerError(
        f"The quantizer returned a model with other {what}.",
        expected=expected or f"no {what}",
        got=got or f"no {what}",
        remedy="return the model that transform_for_annotation receives, or one that is called like it",
    )


def _complete_values(model: GraphModule, new: set[Node]) -> None:
    """Record the value of each new node that lacks it, found by running its operator on fake tensors."""
    mode = next((value.fake_mode for value in _fakes(model.graph)), None)
    for node in model.graph.nodes:
        if node in new and "val" not in node.meta:
            value = _value_of(model, node, mode)
            if value is not None:
                node.meta["val"] = value


def _fakes(graph: Graph) -> Iterator[FakeTensor]:
    recorded = (node.meta.get("val") for node in graph.nodes)
    return (value for value in recorded if isinstance(value, FakeTensor))


def _value_of(model: GraphModule, node: Node, mode: Any) -> Any:
    if node.op == "get_attr":
        held = attribute(model, str(node.target))
        known = isinstance(held, torch.Tensor) and mode is not None
        return fake_of(held, mode) if known else None
    if node.op != "call_function" or mode is None:
        return None

    def recorded(source: Node) -> Any:
        return source.meta["val"] if "val" in source.meta else attribute(model, str(source.target))

    if any("val" not in source.meta and source.op != "get_attr" for source in node.all_input_nodes):
        return None
    target: Any = node.target
    with mode, torch.no_grad():
        return target(*map_arg(node.args, recorded), **map_arg(node.kwargs, recorded))
