"""Connected components: what links join, together. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

_T = TypeVar("_T", bound=Hashable)


def connected(members: Iterable[_T], links: Iterable[tuple[_T, _T]]) -> list[tuple[_T, ...]]:
    """Group members that links join, directly or through others.

    Args:
        members: in the order that they have within a group; groups have that of their first members.
        links: pairs of members.
    """
    import networkx  # takes half a second to import; torch has done so where a model was exported

    position = {member: number for number, member in enumerate(members)}
    graph = networkx.Graph()
    graph.add_nodes_from(position)
    graph.add_edges_from(links)
    return [tuple(sorted(group, key=position.__getitem__)) for group in networkx.connected_components(graph)]
