"""Parts of a program for the delegate that do not depend on each other in a circle.

ExecuTorch joins what its configs take two by two, and looks for a path in the program that leaves the joined
part and comes back. It does not look through other parts. So two parts can read each other: ``a → x → b`` and
``c → y → d`` with ``a`` and ``d`` in one part, ``b`` and ``c`` in another. Such a program has no order to run
in, and lowering ends with "Invalid partition, found dependency cycles".

Here each part is a level. What is delegated is a level above what reads its results by way of the runtime,
and not below what reads them right away. A path that leaves a level goes down, and comes back to none. A path
needs a part for each time that it is in the delegate, and the longest one is on every level: no fewer parts
are possible.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

#: A group of nodes, by its number, or a node that is in none.
_Step = Hashable


def partitioner(configs: Sequence[Any]) -> Any:
    """XNNPACK's partitioner with parts that do not depend on each other in a circle.

    Args:
        configs: of ExecuTorch's partitioner. They say which nodes are taken, and which of them together.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir.backend.canonical_partitioners.config_partitioner import is_constant_data
    from torch.fx.passes.infra.partitioner import Partition

    class InLevels(XnnpackPartitioner):  # type: ignore[misc]  # ExecuTorch has no types
        def generate_partitions(self, ep: Any) -> list[Any]:
            nodes = [*ep.graph_module.graph.nodes]
            constants = {node for node in nodes if node.op == "placeholder" and is_constant_data(ep, node)}
            found = parts(nodes, self.get_matched_nodes_from_configs(ep), constants)
            return [Partition(id=number, nodes=part) for number, part in enumerate(found)]

    return InLevels(configs=configs)


def parts(nodes: Iterable[Any], groups: Iterable[Iterable[Any]], constants: Iterable[Any]) -> list[list[Any]]:
    """Join groups of nodes to the smallest number of parts that do not depend on each other in a circle.

    Args:
        nodes: of a graph.
        groups: the nodes that are delegated, each with those that it must be in one part with. No node is in
            two groups. A group that depends on itself, or on others in a circle, is left out.
        constants: the nodes whose value each part has a copy of, so that no part depends on another for it.

    Returns:
        the nodes of each part, in the order of the graph; the parts in the order in which they can run.
    """
    copied = set(constants)
    group_of = {node: number for number, group in enumerate(groups) for node in group}
    ordered = [*nodes]
    while True:
        readers = _readers(ordered, group_of, copied)
        try:
            steps = [*TopologicalSorter(readers).static_order()]  # readers first
        except CycleError as error:
            circle = set(error.args[1])
            group_of = {node: number for node, number in group_of.items() if number not in circle}
        else:
            break
    levels = _levels(steps, readers, set(group_of.values()))
    found = defaultdict(list)
    for node in ordered:
        if node in group_of:
            found[levels[group_of[node]]].append(node)
    return [found[level] for level in sorted(found, reverse=True)]


def _readers(
    nodes: Iterable[Any], group_of: Mapping[Any, int], copied: set[Any]
) -> dict[_Step, dict[_Step, None]]:
    """Each group, and each node that is in none → those that read its results, in the order of the graph."""
    readers: dict[_Step, dict[_Step, None]] = {}
    for node in nodes:
        step = group_of.get(node, node)
        others = readers.setdefault(step, {})
        if node not in copied:
            others.update((group_of.get(user, user), None) for user in node.users)
            others.pop(step, None)
    return readers


def _levels(
    steps: Iterable[_Step], readers: Mapping[_Step, Iterable[_Step]], delegated: set[int]
) -> dict[_Step, int]:
    """Each step → how often a path from it to an output changes from the delegate to the runtime, at most."""
    levels: dict[_Step, int] = {}
    for step in steps:
        is_delegated = step in delegated
        levels[step] = max(
            (levels[reader] + (is_delegated and reader not in delegated) for reader in readers[step]),
            default=0,
        )
    return levels
