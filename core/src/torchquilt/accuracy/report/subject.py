"""The quantized model that a report is about: its graph, its ledger, and what made it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from torchquilt.artifact.loading import Artifact
from torchquilt.artifact.lock import Lock
from torchquilt.errors import ModelError
from torchquilt.graph.module_scope import scopes_of
from torchquilt.graph.node_values import attribute, call_name
from torchquilt.graph.subgraphs import Region, name_operands, placeholders, regions
from torchquilt.ledger.ledger import Ledger
from torchquilt.ledger.rows import Row
from torchquilt.lowering.ledger_join import Joint
from torchquilt.lowering.program import LoweredProgram
from torchquilt.pt2e.model_record import RECORD_KEY, stage_in_words, stage_of

Call = tuple[Region, Node, Row | None]


@attrs.frozen(eq=False)
class Subject:
    """A quantized model.

    Args:
        graph: its graph.
        ledger: every decision about it.
        record: what is known of how it came about, as plain values.
        lock: that of a saved model; None for another one.
        tensors: name → each stored tensor.
        calls: each node of the graph and of the subgraphs in it, with the row that it stands for.
    """

    graph: GraphModule
    ledger: Ledger
    record: Mapping[str, Any]
    lock: Lock | None
    tensors: Mapping[str, torch.Tensor]
    calls: tuple[Call, ...]
    _stored: Mapping[Node, str]

    @property
    def title(self) -> str:
        """The class of the model, as far as the graph tells."""
        for node in self.graph.graph.nodes:
            scopes = scopes_of(node)
            if scopes and scopes[0].type_name:
                return scopes[0].type_name.rpartition(".")[2]
        return "model"

    def stored(self, node: Any) -> torch.Tensor | None:
        """The stored tensor that a node reads; None for another node."""
        name = self._stored.get(node)
        return None if name is None else self.tensors.get(name)


def subject_of(quantized: object) -> Subject:
    """Read what :func:`torchquilt.convert_pt2e` or :func:`torchquilt.load` returned.

    Raises:
        ModelError: it is something else, or nothing is known of how it was quantized.
    """
    lock = quantized.lock if isinstance(quantized, Artifact) else None
    model = quantized.program if isinstance(quantized, Artifact) else quantized
    graph = model.graph_module if isinstance(model, ExportedProgram) else model
    record = graph.meta.get(RECORD_KEY) if isinstance(graph, GraphModule) else None
    is_early = stage_of(graph) in ("prepared", "trainable")
    if not isinstance(graph, GraphModule) or record is None or is_early:
        raise ModelError(
            "This is no quantized model, so there is nothing to report of it.",
            expected="what convert_pt2e or load returned",
            got=stage_in_words(quantized),
            remedy="prepare_pt2e, calibrate, convert_pt2e, then report(float_model, quantized)",
        )
    program = model if isinstance(model, ExportedProgram) else None
    tensors = _tensors_of(graph if program is None else program)
    ledger, stored = Ledger.from_plain(record["ledger"]), _stored_names(graph, program)
    return Subject(graph, ledger, record, lock, tensors, tuple(_calls(graph, ledger)), stored)


def with_lowering_statuses(subject: Subject, program: object) -> Subject:
    """The same, with the lowering status of each operator.

    Args:
        subject: the model.
        program: what it was lowered to.

    Raises:
        ModelError: it is no lowered program of this model.
    """
    ledger = program.ledger if isinstance(program, LoweredProgram) else None
    statuses = {} if ledger is None else {row.node: row.lowered for row in ledger}
    if not statuses.keys() & {row.node for row in subject.ledger}:
        raise ModelError(
            "This is no program that the model was lowered to.",
            expected="program=what torchquilt.lower returned for this model",
            got=repr(program) if isinstance(program, LoweredProgram) else type(program).__qualname__,
            remedy="leave it out, or lower the model",
        )
    rows = (attrs.evolve(row, lowered=statuses.get(row.node)) for row in subject.ledger)
    return attrs.evolve(subject, ledger=attrs.evolve(subject.ledger, rows=tuple(rows)))


def _calls(graph: GraphModule, ledger: Ledger) -> Iterator[Call]:
    joint = Joint(graph, ledger)
    # What has no overload (control flow, an item of a tuple) keeps its name.
    others = {form: row for row in ledger.rows for form in row.forms}
    for region in regions(graph):
        for node in region.module.graph.nodes:
            name = region.name_of(node)
            row = None
            if node.op == "call_function":
                row = joint.row(name) or others.get((name, call_name(node)))
            yield region, node, row


def _tensors_of(model: GraphModule | ExportedProgram) -> dict[str, torch.Tensor]:
    if isinstance(model, ExportedProgram):
        found = {**model.state_dict, **model.constants}
    else:
        found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for node in model.graph.find_nodes(op="get_attr"):
            found.setdefault(str(node.target), attribute(model, str(node.target)))
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def _stored_names(graph: GraphModule, program: ExportedProgram | None) -> dict[Node, str]:
    """Node that stands for a stored tensor, in the graph or in a subgraph → name of that tensor."""
    names: dict[str, str] = {}
    if program is not None:
        signature = program.graph_signature
        names = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
    found = {node: names[node.name] for node in placeholders(graph.graph) if node.name in names}
    for region in regions(graph):
        name_operands(region, found)
        for node in region.module.graph.find_nodes(op="get_attr"):
            found[node] = f"{region.path}.{node.target}" if region.path else str(node.target)
    return found


def bytes_by_dtype(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Bytes of the tensors of each dtype, the most first; memory that is shared counts once."""
    seen: set[tuple[int, int]] = set()
    found: dict[str, int] = {}
    for tensor in tensors.values():
        where = (tensor.untyped_storage().data_ptr(), int(tensor.storage_offset()))
        if where in seen and where[0]:
            continue
        seen.add(where)
        name = str(tensor.dtype).removeprefix("torch.")
        found[name] = found.get(name, 0) + tensor.nbytes
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def tensors_of_float(model: object) -> dict[str, torch.Tensor]:
    """The stored tensors of a float model: an ExportedProgram or a module."""
    if isinstance(model, ExportedProgram):
        return _tensors_of(model)
    if isinstance(model, torch.nn.Module):
        return {**dict(model.named_parameters()), **dict(model.named_buffers())}
    raise ModelError(
        "This is no float model.",
        expected="an ExportedProgram, a torch.nn.Module, or None",
        got=f"{type(model).__module__}.{type(model).__qualname__}",
        remedy="hand in what was quantized, or None to leave out what is read from it",
    )
