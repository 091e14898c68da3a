"""Keeping operators out of what partitioners hand to their delegates.

A partitioner decides by what a node calls. While it reads the program, a node that is withheld calls
something that no partitioner knows. So the partitioner leaves it to the runtime, decides about its neighbours
as beside any operator that it does not take, and makes parts without cycles by itself. This holds for every
partitioner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from executorch.exir.backend.partitioner import Partitioner

from torchquilt.backend import Origins, is_conversion, overload_name, regions, stays_in_float

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

#: An overload (``aten.prelu.default``) and a node that calls it → why a delegate must not take it, or ``""``.
Withholds = Callable[[str, "Node"], str]


class Withheld:
    """The operators that one partitioner must not take, each with the reason.

    An operator is known by the node of the exported program that it comes from: what that is decomposed into
    is withheld with it. What has no such node, since a pass made it, is known by its own name.

    Args:
        origins: of the nodes of the exported program.
        withholds: what the backend states of a node.
        reasons: key → reason, for what is known beforehand.
    """

    def __init__(self, origins: Origins, withholds: Withholds, reasons: Mapping[str, str]) -> None:
        self._origins = origins
        self._withholds = withholds
        self._reasons = dict(reasons)

    def beside(self, reasons: Mapping[str, str]) -> Withheld:
        """Withhold more operators beside those that are withheld."""
        return Withheld(self._origins, self._withholds, {**reasons, **self._reasons})

    def state(self, program: ExportedProgram) -> None:
        """Ask the backend about the operators of an exported program, before they are decomposed."""
        self.nodes_in(program)

    def nodes_in(self, program: ExportedProgram) -> list[Node]:
        """The nodes of a program that are withheld.

        What is quantized together is withheld together: operators without quantize and dequantize between
        them, such as linear and relu, are one kernel as integers, and none of them is by itself.
        """
        prefixes = {node: name.removesuffix(node.name) for name, node in calls_of(program)}
        found = {node: why for node, prefix in prefixes.items() if (why := self.reason(node, prefix))}
        waiting = list(found)
        for node in waiting:  # grows while it is walked
            for other in (*node.all_input_nodes, *node.users):
                if other in prefixes and other not in found and _are_quantized_together(node, other):
                    found[other] = f"it is computed with {overload_name(node)}: {found[node]}"
                    self._reasons.setdefault(self.key(other, prefixes[other]), found[other])
                    waiting.append(other)
        return waiting

    def key(self, node: Node, prefix: str = "") -> str:
        """The key of an operator; ``prefix`` as for :meth:`Origins.of`."""
        return self._origins.of(node, prefix) or prefix + node.name

    def reason(self, node: Node, prefix: str = "") -> str:
        """Reason for which an operator is withheld, empty where it is not.

        What quantizes and dequantizes is never: by it a partitioner sees how its neighbours compute.
        """
        if is_conversion(node):
            return ""
        key = self.key(node, prefix)
        if key not in self._reasons and (stated := self._withholds(overload_name(node), node)):
            self._reasons[key] = stated
        return self._reasons.get(key, "")

    @property
    def reasons(self) -> Mapping[str, str]:
        """Key → reason, for all that is withheld."""
        return self._reasons


class WithholdingPartitioner(Partitioner):  # type: ignore[misc]  # ExecuTorch has no types
    """A partitioner that leaves what is withheld to the runtime, and does as another one for the rest.

    Args:
        inner: the other one.
        withheld: what it must not take.
    """

    def __init__(self, inner: Any, withheld: Withheld) -> None:
        super().__init__(getattr(inner, "_spec", {}))  # Arm's have none
        self.inner = inner
        self.withheld = withheld
        #: What it has divided into parts, which ExecuTorch cuts out of it and gives to the delegate.
        self.divided: ExportedProgram | None = None

    def partition(self, exported_program: ExportedProgram) -> Any:
        """Tag the nodes of each part; see ExecuTorch's ``Partitioner``."""
        hidden = [(node, node.target) for node in self.withheld.nodes_in(exported_program)]
        for node, _ in hidden:
            node.target = _withheld_operator
        try:
            result = self.inner(exported_program)
        finally:
            for node, target in hidden:
                node.target = target
        self.divided = result.tagged_exported_program
        return result

    def ops_to_not_decompose(self, ep: ExportedProgram) -> tuple[Sequence[Any], Any]:
        """The operators that stay whole, and a filter of their nodes: what is withheld is decomposed."""
        operators, takes = self.inner.ops_to_not_decompose(ep)
        if not self.withheld.nodes_in(ep):
            return operators, takes

        def takes_the_rest(node: Node) -> bool:
            is_withheld = node.op == "call_function" and self.withheld.reason(node)
            return not is_withheld and (takes is None or takes(node))

        return operators, takes_the_rest

    def transform_for_pre_decomposition(self, exported_program: ExportedProgram) -> ExportedProgram:
        """Transform the program as the other partitioner does before it is decomposed."""
        transformed: ExportedProgram = self.inner.transform_for_pre_decomposition(exported_program)
        return transformed


def calls_of(program: ExportedProgram) -> Iterator[tuple[str, Node]]:
    """The calls of operators in a program and the subgraphs in it, each with its name."""
    for region in regions(program.graph_module):
        for node in region.module.graph.nodes:
            if overload_name(node):
                yield region.name_of(node), node


def _are_quantized_together(node: Node, other: Node) -> bool:
    """Whether two operators, one of which reads the other, are of one claim of a quantizer."""
    pair = (node, other)
    if any(is_conversion(one) or stays_in_float(one) for one in pair):
        return False
    around = (near for one in pair for near in (*one.all_input_nodes, *one.users))
    return any(map(is_conversion, around))


def _withheld_operator(*_: object) -> None:
    """Stand for an operator that is withheld, while a partitioner reads the program."""
