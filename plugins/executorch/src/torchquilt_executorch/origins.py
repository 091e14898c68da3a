"""Which node of the exported program a node of a later program comes from.

torch notes in ``from_node`` what a node was made of, step by step, and ExecuTorch's passes keep that. A node
comes from the node of the exported program that is in its chain with the same rest of a chain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torchquilt.graph.bodies import regions

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

_Step = tuple[str, str]


def chain(node: Node) -> tuple[_Step, ...]:
    """The names that a node had, the last one first, each with the pass that made the next of it."""
    found: list[_Step] = []
    sources = node.meta.get("from_node") or []
    while sources:
        source = sources[-1]
        found.append((source.name, source.pass_name))
        sources = source.from_node
    return tuple(found)


class Origins:
    """The nodes of a program, to be found by what became of them.

    Args:
        nodes: each with its name. What their chains are is noted now, so that the nodes may change.
    """

    def __init__(self, nodes: Iterable[tuple[str, Node]]) -> None:
        self._by_name: dict[str, list[tuple[str, tuple[_Step, ...]]]] = defaultdict(list)
        for name, node in nodes:
            self._by_name[node.name].append((name, chain(node)))

    @classmethod
    def of_program(cls, program: ExportedProgram) -> Origins:
        """The nodes of an exported program, in the bodies of control flow as well."""
        return cls(
            (region.name_of(node), node)
            for region in regions(program.graph_module)
            for node in region.module.graph.nodes
        )

    def of(self, node: Node) -> str:
        """The name of the node that a later one comes from, empty where that is not known."""
        steps = chain(node)
        for index, (name, _) in enumerate(steps):
            for full_name, rest in self._by_name.get(name, ()):
                if rest == steps[index + 1 :]:
                    return full_name
        return ""
