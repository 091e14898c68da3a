"""The graph of a report: an operator of the ledger is a node, and conversions are left out of the edges."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from torch.fx import Node

from torchquilt.accuracy.report.subject import Subject
from torchquilt.graph.subgraphs import Region, call_of, placeholders


@attrs.frozen
class Drawn:
    """One node of the drawing.

    Args:
        name: of the row of the ledger, or of an input or the output of the model.
        kind: ``operator``, ``input`` or ``output``.
    """

    name: str
    kind: str


class Drawing:
    """Nodes and edges of the graph of a quantized model.

    Quantize and dequantize operators, and whatever else no row of the ledger stands for, are not nodes: an
    edge leads from what they read to what reads them. The operators in a subgraph of control flow read what
    is handed into it, and the operator that runs it reads them.
    """

    def __init__(self, subject: Subject) -> None:
        self.nodes: list[Drawn] = []
        self._number: dict[Drawn, int] = {}
        self._edges: dict[tuple[int, int], None] = {}
        #: Node of the graph → the nodes of the drawing that its value comes from.
        self._sources: dict[Node, tuple[int, ...]] = {}
        entered: set[str] = set()
        for region, node, row in subject.calls:
            if region.path not in entered:
                entered.add(region.path)
                self._enter(region)
            self._draw(region, node, None if row is None else row.node, subject)

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """Pairs of indices into the nodes."""
        return tuple(self._edges)

    def _enter(self, region: Region) -> None:
        """Let the inputs of a subgraph stand for what is handed into it."""
        call = call_of(region.caller) if region.caller is not None else None
        if call is None:
            return
        for inner, operand in zip(placeholders(region.module.graph), call.operands, strict=True):
            self._sources[inner] = self._sources.get(operand, ())

    def _draw(self, region: Region, node: Node, name: str | None, subject: Subject) -> None:
        read = self._read_by(node)
        if node.op == "placeholder":
            is_input = region.caller is None and subject.stored(node) is None and node.users
            self._sources.setdefault(node, (self._add(Drawn(node.name, "input")),) if is_input else ())
        elif node.op == "output" and region.caller is None:
            self._connect(read, self._add(Drawn("output", "output")))
        elif node.op == "output":
            assert region.caller is not None
            self._connect(read, *self._sources.get(region.caller, ()))
        elif name is not None:
            drawn = self._add(Drawn(name, "operator"))
            self._connect(read, drawn)
            self._sources[node] = (drawn,)
        else:
            self._sources[node] = read

    def _read_by(self, node: Node) -> tuple[int, ...]:
        found = (one for source in node.all_input_nodes for one in self._sources.get(source, ()))
        return tuple(dict.fromkeys(found))

    def _add(self, drawn: Drawn) -> int:
        if drawn not in self._number:
            self._number[drawn] = len(self.nodes)
            self.nodes.append(drawn)
        return self._number[drawn]

    def _connect(self, sources: Iterable[int], *targets: int) -> None:
        for source in sources:
            for target in targets:
                if source != target:
                    self._edges[source, target] = None
