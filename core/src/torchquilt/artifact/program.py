"""Contents of a program: tensors and their digests, quantization parameters, operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from torchquilt.artifact.lock import OperatorCount, QuantizedTensor, StoredTensor
from torchquilt.errors import ArtifactError
from torchquilt.graph.module_scope import module_path
from torchquilt.graph.qdq import is_quantize, qdq_of
from torchquilt.graph.subgraphs import name_operands, placeholders, regions
from torchquilt.graph.tensor_digest import tensor_digest
from torchquilt.spec.dtypes import dtype_name

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Graph, Node


def stored_tensors(program: ExportedProgram, entries: Mapping[str, str]) -> tuple[StoredTensor, ...]:
    """Each tensor of the state and of the constants.

    Args:
        program: it is only read.
        entries: name of a tensor → entry of the archive that holds it.

    Raises:
        ArtifactError: something there is not a plain tensor.
    """
    parameters = set(program.graph_signature.parameters)
    buffers = set(program.graph_signature.buffers)
    found = []
    for name, value in (*program.state_dict.items(), *program.constants.items()):
        role = "parameter" if name in parameters else "buffer" if name in buffers else "constant"
        tensor = _plain_tensor(name, role, value)
        found.append(
            StoredTensor(
                name=name,
                role=role,
                dtype=dtype_name(tensor.dtype),
                shape=tuple(tensor.shape),
                sha256=tensor_digest(tensor),
                entry=entries.get(name, ""),
            )
        )
    return tuple(found)


def _plain_tensor(name: str, role: str, value: Any) -> torch.Tensor:
    import torch

    if (
        type(value) not in (torch.Tensor, torch.nn.Parameter)
        or value.layout != torch.strided
        or value.is_meta
    ):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise ArtifactError(
            f"The {role} {name!r} is not a plain tensor with values, so it would have to be pickled.",
            expected="a strided torch.Tensor on a real device",
            got=f"{kind}, {value.layout}, {value.device}" if isinstance(value, torch.Tensor) else kind,
            remedy="convert it to a plain tensor in the model before it is exported",
        )
    tensor: torch.Tensor = value
    return tensor


def operator_counts(program: ExportedProgram) -> tuple[OperatorCount, ...]:
    """Number of calls of each operator, in the subgraphs of control flow as well."""
    counts = Counter(
        str(node.target)
        for _, graph in _graphs(program)
        for node in graph.nodes
        if node.op == "call_function"
    )
    return tuple(OperatorCount(name, count) for name, count in sorted(counts.items()))


def quantized_tensors(program: ExportedProgram) -> tuple[QuantizedTensor, ...]:
    """The parameters of each quantized tensor, as its quantize or dequantize operator has them."""
    found: dict[str, QuantizedTensor] = {}
    stored = _stored_names(program)
    for prefix, graph in _graphs(program):
        for node in graph.nodes:
            row = _quantized_tensor(node, prefix, stored)
            if row is None:
                continue
            # A constant is dequantized for each of its users; a tensor may be quantized in two ways.
            name, number = row.name, 1
            while name in found and attrs.evolve(found[name], name=row.name) != row:
                number += 1
                name = f"{row.name}#{number}"
            found[name] = attrs.evolve(row, name=name)
    return tuple(found.values())


def _quantized_tensor(node: Node, prefix: str, stored: Mapping[Node, str]) -> QuantizedTensor | None:
    told = qdq_of(node)
    # What is behind a quantize operator is told by that one.
    if told is None or (not told.is_quantize and is_quantize(told.input)):
        return None
    scale = _parameter(told.scale, stored)
    is_constant = not told.is_quantize and told.input in stored
    kind = "constant" if is_constant else "dynamic" if scale is None else "static"
    return QuantizedTensor(
        name=stored.get(told.input, f"{prefix}{told.input.name}"),
        kind=kind,
        module=module_path(node),
        dtype=dtype_name(told.dtype),
        quant_min=told.quant_min,
        quant_max=told.quant_max,
        granularity=str(told.granularity),
        axis=told.axis,
        group_size=told.group_size,
        scale=scale,
        zero_point=_parameter(told.zero_point, stored),
    )


def _parameter(value: Any, stored: Mapping[Node, str]) -> float | str | None:
    """A number as it is, a stored tensor by its name, None for what the program computes."""
    if isinstance(value, (int, float)):
        return value
    return stored.get(value) if value is not None else None


def _stored_names(program: ExportedProgram) -> dict[Node, str]:
    """Input of the graph, or of a subgraph in it, that stands for a stored tensor → name of that tensor."""
    signature = program.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    stored = {node: names[node.name] for node in placeholders(program.graph) if node.name in names}
    for region in regions(program.graph_module):
        name_operands(region, stored)
    return stored


def _graphs(program: ExportedProgram) -> Iterator[tuple[str, Graph]]:
    """The graph and those of the subgraphs of control flow, each with what its names are preceded by."""
    import torch

    for path, module in program.graph_module.named_modules():
        if isinstance(module, torch.fx.GraphModule):
            yield f"{path}." if path else "", module.graph
