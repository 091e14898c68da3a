"""Join of a ledger with a lowered program: where each operator runs.

Importing this module does not import torch.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import attrs

from torchquilt._internal.connected import connected
from torchquilt.graph.module_scope import module_path
from torchquilt.graph.node_values import overload_name
from torchquilt.graph.subgraphs import Region, regions
from torchquilt.ledger.ledger import Ledger
from torchquilt.ledger.lowering_status import LoweringStatus
from torchquilt.ledger.rows import Row
from torchquilt.lowering.program_facts import Leftover, LoweredOperation
from torchquilt.lowering.target import Conversion, Lowered, Operation
from torchquilt.reasons import rank_of_status

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

    from torchquilt.lowering.claims import Unclaimed

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


#: Lowering statuses of what was quantized and computes in float.
_NOT_AS_MEANT = frozenset({"fell_back_to_float", "refused_by_delegate", "delegated_as_float"})


class Joint:
    """Rows of a ledger, and lines of code, that the nodes of an exported program stand for.

    Args:
        program: the graph of what is lowered, or another graph that was made of the same model.
        ledger: of the model that it was exported from, None where there is none.
        names: name of a node of the program → the name that it had in the model, for those whose region was
            written into the graph around it.
    """

    def __init__(
        self, program: GraphModule, ledger: Ledger | None, names: Mapping[str, str] | None = None
    ) -> None:
        names = names or {}
        self._nodes: dict[str, Node] = {}
        self._rows: dict[str, Row] = {}
        self._made_for: dict[str, str] = {}
        #: Name of a call of a region → the rows in it, in order, for those that torch writes into the graph.
        self._within: dict[str, list[Row]] = defaultdict(list)
        rows = {} if ledger is None else {form: row for row in ledger.rows for form in row.forms}
        for region in regions(program):
            for node in region.module.graph.nodes:
                name = region.name_of(node)
                self._nodes[name] = node
                before = names.get(name, name)
                prefix = before.removesuffix(before.rpartition(".")[2])
                earlier = _earlier_names(node)
                # An operator in a region has the origin of the call, which says nothing of it.
                last = () if prefix else earlier[:1]
                # Export names nodes anew by their operator: a product written as linear gets the name that
                # another linear had. So the earlier name of a node tells more than its name.
                told = (*last, before) if before == name else (before, *last)
                fitting = [(one, overload_name(node)) for one in (*told, prefix + node.name)]
                row = next((rows[one] for one in fitting if one in rows), None)
                if row is not None:
                    self._rows[name] = row
                    self._within[_call_of(region)].append(row)
                    self._made_for.setdefault(prefix + (earlier or (node.name,))[-1], name)

    def row(self, source: str) -> Row | None:
        """The row that a node of the program stands for."""
        return self._rows.get(source)

    def rows(self, operations: Iterable[Operation]) -> Iterator[tuple[Operation, Row]]:
        """Each operation with the row that it comes from, as far as that is known.

        What torch wrote into the graph around a region comes from the call. Then the operators and their
        order tell; what is no operator of the region is what the next one of it was decomposed into.
        """
        operations = tuple(operations)
        waiting = {call: [*rows] for call, rows in self._within.items() if call}
        present = {(one.source, one.op) for one in operations}
        for operation in operations:
            source = operation.source
            row, rest = self.row(source), waiting.get(source, [])
            if row is None:
                row = next((one for one in rest if one.op == operation.op), None)
                if row is not None:
                    waiting[source] = rest[rest.index(row) + 1 :]
                elif rest and (source, rest[0].op) not in present:
                    row = rest[0]
            if row is not None:
                yield operation, row

    def left_in_float(self) -> Iterator[str]:
        """The nodes of the program for rows of operators in float."""
        return (name for name, row in self._rows.items() if not row.is_quantized)

    def stems_from(self, source: str) -> str:
        """The node of the program that a quantize or dequantize was inserted for."""
        node = self._nodes.get(source)
        if node is None:
            return ""
        prefix = source.removesuffix(node.name)
        found = self._made_for.get(prefix + (_earlier_names(node) or (node.name,))[-1], "")
        return found or next((one.name for one in node.users if one.op == "call_function"), "")

    def lowered_operation(self, operation: Operation) -> LoweredOperation:
        """An operation as users see it."""
        node = self._nodes.get(operation.source)
        row = self.row(operation.source)
        name = operation.source if row is None else row.node
        module = module_path(node) if node is not None else ""
        line = source_line(node) if node is not None else ""
        return LoweredOperation(
            operation.op,
            name,
            module,
            operation.delegate,
            operation.arithmetic,
            line,
            operation.step,
            operation.output,
            is_quantized=row is not None and row.is_quantized,
        )

    def leftover(self, conversion: Conversion) -> Leftover:
        """A conversion that is left, with the node that it stems from."""
        stem = self.stems_from(conversion.source)
        node = self._nodes.get(stem) or self._nodes.get(conversion.source)
        row = self.row(stem)
        return Leftover(
            conversion.name,
            conversion.op,
            stem if row is None else row.node,
            "" if node is None or not stem else overload_name(node),
            "" if node is None else module_path(node),
            "" if node is None else source_line(node),
        )


def _call_of(region: Region) -> str:
    """The name of the call that runs a region which torch may write into the graph around it, or empty."""
    if region.caller is None or not str(region.caller.target).startswith("wrap_with_"):
        return ""
    return region.path.removesuffix(region.path.rpartition(".")[2]) + region.caller.name


def joined(ledger: Ledger, joint: Joint, lowered: Lowered, unclaimed: Mapping[str, Unclaimed]) -> Ledger:
    """The ledger with the lowering status of each row.

    Args:
        ledger: of the model.
        joint: joins its rows with what is lowered.
        lowered: result of the target.
        unclaimed: operator that no row promises for this target → who quantized it.
    """
    found: dict[str, list[Operation]] = defaultdict(list)
    for operation, row in joint.rows(lowered.operations):
        found[row.node].append(operation)
    rows = []
    for row in ledger.rows:
        status = _lowering_status(row, found.get(row.node, []))
        if status.code in _NOT_AS_MEANT and row.node in unclaimed:
            status = attrs.evolve(status, text=f"{status.text}; {unclaimed[row.node]}")
        rows.append(attrs.evolve(row, lowered=status))
    return attrs.evolve(ledger, rows=tuple(rows))


def _lowering_status(row: Row, operations: list[Operation]) -> LoweringStatus:
    """Lowering status of a row whose operations are these."""
    if not operations:
        return LoweringStatus("removed", "", "no operator of the program comes from it")
    statuses = [LoweringStatus(_code(row, one), one.delegate, one.refused or one.why) for one in operations]
    return min(statuses, key=lambda status: rank_of_status(status.code))


def _code(row: Row, operation: Operation) -> str:
    if operation.delegate:
        return "delegated_as_integers" if operation.arithmetic == "integer" else "delegated_as_float"
    if operation.refused:
        return "refused_by_delegate"
    if row.is_quantized:
        return "integer_kernel" if operation.arithmetic == "integer" else "fell_back_to_float"
    return "float_kernel"


def float_islands(operations: Iterable[Operation], joint: Joint) -> tuple[tuple[str, ...], ...]:
    """Islands of operations in float: groups that pass floats to each other.

    Those that read one tensor of floats are together as well, whichever operator made it.
    """
    operations = tuple(operations)
    names = {one.name: one for one in operations if one.arithmetic == "float"}
    makers = (one.name for one in operations if one.returns_float)
    members = dict.fromkeys((*names, *makers))
    links = ((one.name, source) for one in names.values() for source in one.reads if source in members)
    islands = ([names[member] for member in group if member in names] for group in connected(members, links))
    return tuple(
        tuple(dict.fromkeys(joint.lowered_operation(one).node or one.name for one in island))
        for island in islands
        if island
    )


def node_in_words(node: Node, name: str = "") -> str:
    """A node for an error: its name and operator, the module and the line of code that it comes from.

    Args:
        node: it.
        name: with the subgraph of control flow that it is in, where it is in one (``true_graph_0.linear``).
    """
    where = ", ".join(
        filter(None, (f"module {module_path(node)}" if module_path(node) else "", source_line(node)))
    )
    return f"{name or node.name} ({', '.join(filter(None, (overload_name(node), where)))})"


def source_line(node: Node) -> str:
    """``file:line`` of the code that a node comes from, the innermost that is not torch's own."""
    frames = _FRAME.findall(str(node.meta.get("stack_trace") or ""))
    frames = [frame for frame in frames if not frame[0].startswith("<")]  # code that torch generated
    own = [frame for frame in frames if "/torch/" not in frame[0]]
    return ":".join((own or frames)[-1]) if frames else ""


def _earlier_names(node: Node) -> tuple[str, ...]:
    """The names that a node had before the model was exported again, the last one first."""
    found: list[str] = []
    sources = node.meta.get("from_node") or []
    while sources:
        found.append(sources[-1].name)
        sources = sources[-1].from_node
    return tuple(found)
