"""The step before lowering: lookups of an exported program as calls of ExecuTorch's embedding kernels."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from torchquilt.backend import copied_graph, fake_like
from torchquilt_executorch_embedding.kernels import Table, call_kernel, define_operators, table_of


def call_kernels(program: ExportedProgram) -> ExportedProgram:
    """A program whose lookups in quantized tables are calls of kernels. ``tq.lower`` does it by itself.

    Args:
        program: a converted model, exported. It is left as it is; the result shares its other tensors.

    Returns:
        The program with its lookups written as calls of kernels; it computes the same. Lookups in tables of
        other forms, and in those that something else reads, too, are left as they are.

    Raises:
        ImportError: ExecuTorch, which defines the operators, is not installed.
    """
    define_operators()
    graph, _ = copied_graph(program.graph)
    found = [(node, table) for node in graph.nodes if (table := table_of(node)) is not None]
    lookups = {node for node, _ in found}
    found = [(node, table) for node, table in found if _is_read_by_lookups_alone(table, lookups)]
    if not found:
        return program
    changed: dict[str, torch.Tensor] = {}
    names = _names_of_tensors(program)
    held = {**program.state_dict, **program.constants}
    for node, table in found:
        _replace(table.integers, changed, names, table.packed, held)
        _replace(table.scale, changed, names, table.scales, held)
        _replace(table.zero_point, changed, names, table.zero_points, held)
        dequantize = node.args[0]
        call = call_kernel(node, table, (table.integers, table.scale, table.zero_point))
        call.name = node.name  # the signature knows an output by it
        if isinstance(dequantize, Node) and not dequantize.users:
            graph.erase_node(dequantize)
    return ExportedProgram(
        root=program.graph_module,
        graph=graph,
        graph_signature=copy.deepcopy(program.graph_signature),
        state_dict={name: changed.get(name, value) for name, value in program.state_dict.items()},
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants={name: changed.get(name, value) for name, value in program.constants.items()},
        verifiers=program.verifiers,
    )


def _is_read_by_lookups_alone(table: Table, lookups: set[Node]) -> bool:
    """Whether the integers may be packed: only lookups that become calls of a kernel read them."""
    return all(user in lookups for dequantize in table.integers.users for user in dequantize.users)


def _names_of_tensors(program: ExportedProgram) -> dict[str, str]:
    """Name of each placeholder that stands for a stored tensor → the name of that."""
    signature = program.graph_signature
    return {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }


def _replace(
    placeholder: Node,
    changed: dict[str, torch.Tensor],
    names: dict[str, str],
    change: Any,
    held: dict[str, Any],
) -> None:
    """Store something else where a placeholder stands, once for all who read it."""
    name = names[placeholder.name]
    if name not in changed:
        changed[name] = change(held[name]).contiguous()
        placeholder.meta["val"] = fake_like(placeholder, changed[name])
