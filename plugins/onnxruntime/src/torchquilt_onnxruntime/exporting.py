"""ONNX of an exported program, as torch writes it, with the origin of each node.

Every node says in its metadata which node of the exported program it comes from. A later step names it after
that, and the runtime's fusions keep these names or those of the values.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torchquilt import LoweringError
from torchquilt.backend import (
    Origins,
    copied_graph,
    is_conversion,
    node_in_words,
    overload_name,
    with_graph,
    without_pool_divisors,
)
from torchquilt_onnxruntime.translations import OPSET, table

if TYPE_CHECKING:
    from onnxscript import ir
    from torch.export import ExportedProgram

#: Key of a node's metadata: the node of the exported program that it comes from.
SOURCE = "torchquilt.source"
#: Key of a node's metadata: ``"conversion"`` for what quantizes and dequantizes, else ``"operator"``.
KIND = "torchquilt.kind"
#: Key of a node's metadata: the overload that it was written for.
OVERLOAD = "torchquilt.op"
#: Key of a node's metadata: operators whose effect it has, too, ``node overload`` in each line.
ALSO = "torchquilt.also"
_NAME = re.compile(r"%(\w+) : ")


def exported(program: ExportedProgram) -> ir.Model:
    """The program as ONNX, with functions and constants as torch writes them.

    Args:
        program: quantized; it is not changed.

    Raises:
        LoweringError: torch has no ONNX for an operator of it; says which.
    """
    import torch

    origins = Origins.of_program(program)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operators that torch lists beside ours
            made = torch.onnx.export(
                _without_numbers(without_pool_divisors(program)),
                dynamo=True,
                optimize=False,
                opset_version=OPSET,
                custom_translation_table=table(),
                verbose=False,
            )
    except Exception as error:  # torch raises ConversionError, DispatchError, ... and what decomposing raises
        raise _failed(program, error) from error
    assert made is not None
    _check_is_stateless(made.exported_program)
    for node in _all_nodes(made.model):
        source = node.meta.get("node")
        if source is not None:
            node.metadata_props.clear()
            node.metadata_props[SOURCE] = origins.of(source, _prefix(node)) or source.name
            node.metadata_props[KIND] = "conversion" if is_conversion(source) else "operator"
            node.metadata_props[OVERLOAD] = overload_name(source)
    made.model.graph.metadata_props.clear()
    return made.model


def _without_numbers(program: ExportedProgram) -> ExportedProgram:
    """The program with None for each output that is a number or a text; torch writes no such outputs."""
    from torch.export.graph_signature import ConstantArgument
    from torch.fx import Node

    if not any(isinstance(one.arg, ConstantArgument) for one in program.graph_signature.output_specs):
        return program
    graph, _ = copied_graph(program.graph)
    output = graph.output_node()
    returned: Any = output.args[0]
    output.args = (tuple(one if isinstance(one, Node) else None for one in returned),)
    signature = copy.deepcopy(program.graph_signature)
    for spec in signature.output_specs:
        if isinstance(spec.arg, ConstantArgument):
            spec.arg = ConstantArgument(spec.arg.name, None)
    return with_graph(program, graph, signature)


def _check_is_stateless(program: Any) -> None:
    """Refuse a model that writes to its state, which shows when it is decomposed.

    Raises:
        LoweringError: it does.
    """
    from torch.export.graph_signature import OutputKind

    for output in program.graph_signature.output_specs:
        if output.kind is not OutputKind.USER_OUTPUT:
            raise LoweringError(
                "The model writes to its state, which an ONNX file does not keep.",
                node=str(output.target or output.arg.name),
                expected="a model that computes outputs of its inputs alone",
                got=f"an output of kind {output.kind.name}",
                remedy="pass the state as an input, and return its new value",
            )


def _all_nodes(model: ir.Model) -> Iterable[Any]:
    for graph in (model.graph, *(one.graph for one in model.functions.values())):
        yield from graph.all_nodes()


def _prefix(node: Any) -> str:
    """Prefix of the names in the subgraph that a function was made of, empty for the graph itself."""
    name = getattr(node.graph, "name", None) or ""
    return f"{name}." if name and name != "main_graph" else ""


def _failed(program: ExportedProgram, error: Exception) -> LoweringError:
    """An error of torch as ours, with the operator that it is about."""
    told, current = [], error
    while current is not None:
        told.append(current)
        current = current.__cause__ or current.__context__  # type: ignore[assignment]
    names = [name for one in told for name in _NAME.findall(str(one))]
    nodes = {node.name: node for node in program.graph.nodes}
    node = next((nodes[name] for name in names if name in nodes), None)
    first = str(told[-1]).strip().partition("\n")[0]
    return LoweringError(
        "The model cannot be written as ONNX.",
        node=node_in_words(node) if node is not None else next(iter(names), None),
        expected="operators that torch writes as ONNX",
        got=f"{type(told[-1]).__name__}: {first}",
        remedy="write the model without the operator",
    )
