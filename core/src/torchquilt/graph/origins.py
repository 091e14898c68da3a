"""Origins: the node of the exported program that a node of a later program comes from.

torch notes in ``from_node`` what a node was made of, step by step, and passes of runtimes keep that. A node
comes from the node of the exported program that is in its chain with the same rest of a chain.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torchquilt.graph.subgraphs import regions

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


def subgraph_names(node: Node) -> list[str]:
    """The attributes that a node is given which are subgraphs of control flow, in order."""
    from torch.fx import GraphModule

    owner = node.graph.owning_module
    names = [str(one.target) for one in node.all_input_nodes if one.op == "get_attr"]
    return [name for name in names if isinstance(getattr(owner, name, None), GraphModule)]


class Origins:
    """The nodes of a program, to be found by the nodes that were made of them.

    Args:
        nodes: each with its name. What their chains are is noted now, so that the nodes may change.
    """

    def __init__(self, nodes: Iterable[tuple[str, Node]]) -> None:
        self._by_name: dict[str, list[tuple[str, tuple[_Step, ...]]]] = defaultdict(list)
        self._subgraphs: dict[str, list[str]] = {}
        for name, node in nodes:
            self._by_name[node.name].append((name, chain(node)))
            prefix = name.removesuffix(node.name)
            self._subgraphs[name] = [f"{prefix}{subgraph}." for subgraph in subgraph_names(node)]

    @classmethod
    def of_program(cls, program: ExportedProgram) -> Origins:
        """The nodes of an exported program, in the subgraphs of control flow as well."""
        return cls(
            (region.name_of(node), node)
            for region in regions(program.graph_module)
            for node in region.module.graph.nodes
        )

    def subgraphs_of(self, node: Node, prefix: str) -> list[str]:
        """Prefixes of the names in the subgraphs that the origin of a node calls, in order."""
        return self._subgraphs.get(self.of(node, prefix), [])

    def of(self, node: Node, prefix: str = "") -> str:
        """The name of the node that a later one comes from, empty where that is not known.

        Args:
            node: the later one.
            prefix: what its name begins with, where it is in a subgraph; two subgraphs may have like nodes.
        """
        steps = chain(node)
        for index, (name, _) in enumerate(steps):
            rest = steps[index + 1 :]
            found = [full_name for full_name, steps_of in self._by_name.get(name, ()) if steps_of == rest]
            if found:
                return prefix + name if prefix + name in found else found[0]
        return ""
