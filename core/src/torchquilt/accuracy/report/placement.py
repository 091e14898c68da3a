"""Placement of the nodes of a graph on a page, in layers from top to bottom.

The layers, the order in them and the way of each edge around other nodes are found by fast-sugiyama, which
has no release for Python 3.10: without it nodes stand in their layers one beside the other, and edges are
straight.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import attrs

#: Size of a node and of the gaps around it, in units of the page.
WIDTH, HEIGHT = 172.0, 38.0
_GAP_X, _LAYER = 22.0, 66.0
#: Share of a node's width that an edge is given where it goes by other nodes.
_EDGE = 0.12
#: An edge over more layers than this is not drawn among the others: a mask that every layer of a transformer
#: reads would otherwise go by all of them.
LONGEST = 12
#: Nodes without any edge stand in rows of so many.
_IN_A_ROW = 4

Point = tuple[float, float]
Edge = tuple[int, int]


@attrs.frozen
class Placement:
    """Placement of a graph.

    Args:
        centres: of each node.
        routes: ``(from, to, points)`` of each edge that is drawn.
        far: the edges that are over too many layers to be drawn among the others.
        size: width and height of all of it.
    """

    centres: tuple[Point, ...]
    routes: tuple[tuple[int, int, tuple[Point, ...]], ...]
    far: tuple[Edge, ...]
    size: Point


def placed(count: int, edges: Sequence[Edge]) -> Placement:
    """Place nodes.

    Args:
        count: of nodes.
        edges: ``(from, to)``, each pair once, in any order. A node reads earlier ones alone.
    """
    layers = _layers(count, edges)
    near = [edge for edge in edges if layers[edge[1]] - layers[edge[0]] <= LONGEST]
    far = [edge for edge in edges if layers[edge[1]] - layers[edge[0]] > LONGEST]
    is_there = bool(near) and find_spec("fast_sugiyama") is not None
    centres, routes = _by_library(near) if is_there else _by_layer(near, layers)
    if not _is_sound(near, centres, routes):
        centres, routes = _by_layer(near, layers)
    _place_alone(centres, [node for node in range(count) if node not in centres])
    width = max((x for x, _ in centres.values()), default=0.0) + WIDTH / 2 + _GAP_X
    height = max((y for _, y in centres.values()), default=0.0) + HEIGHT / 2 + _GAP_X
    ordered = tuple((_rounded(centres[node])) for node in range(count))
    ways = tuple((a, b, tuple(map(_rounded, points))) for a, b, points in routes)
    return Placement(ordered, ways, tuple(far), (round(width, 1), round(height, 1)))


def _is_sound(edges: Sequence[Edge], centres: Mapping[int, Point], routes: Sequence[Any]) -> bool:
    """Whether each edge has its route, and nodes of one height lie beside each other.

    Of some small graphs the library gives neither.
    """
    rows: defaultdict[float, list[float]] = defaultdict(list)
    for x, y in centres.values():
        rows[round(y, 1)].append(x)
    is_apart = all(right - left >= WIDTH for row in rows.values() for left, right in pairwise(sorted(row)))
    return is_apart and sorted((a, b) for a, b, _ in routes) == sorted(edges)


def _rounded(point: Point) -> Point:
    return round(point[0], 1), round(point[1], 1)


def _layers(count: int, edges: Sequence[Edge]) -> list[int]:
    """The layer of each node: right above the first of its users, with as few layers as possible in all."""
    layers = [0] * count
    for source, target in sorted(edges):
        layers[target] = max(layers[target], layers[source] + 1)
    users: defaultdict[int, list[int]] = defaultdict(list)
    for source, target in edges:
        users[source].append(target)
    for node in range(count - 1, -1, -1):
        if users[node]:
            layers[node] = max(layers[node], min(layers[user] for user in users[node]) - 1)
    return layers


_Placed = tuple[dict[int, Point], list[tuple[int, int, list[Point]]]]


def _by_library(edges: Sequence[Edge]) -> _Placed:
    """Centres of the nodes that have edges, and routes of the edges; connected parts below each other."""
    from fast_sugiyama import from_edges

    centres: dict[int, Point] = {}
    routes: list[tuple[int, int, list[Point]]] = []
    # In the layout nodes are 0, 1, …, and what comes behind them are the bends of edges.
    nodes = sorted({node for edge in edges for node in edge})
    number = {node: index for index, node in enumerate(nodes)}
    spacing = WIDTH + _GAP_X
    parts = from_edges(
        [(number[a], number[b]) for a, b in edges],
        vertex_spacing=spacing,
        dummy_size=_EDGE,
        check_layout=False,
    )
    top = HEIGHT / 2 + _GAP_X
    for positions, _, height, segments in sorted(parts, key=lambda part: min(int(n) for n, _ in part[0])):
        left = min(x for _, (x, _) in positions)
        # The library counts from below, and a layer is as far from the next as nodes are from each other.
        where = {
            int(node): (x - left + WIDTH / 2 + _GAP_X, top + (height - y) / spacing * _LAYER)
            for node, (x, y) in positions
        }
        centres.update({nodes[index]: point for index, point in where.items() if index < len(nodes)})
        ways = _routes(segments or (), where, len(nodes))
        routes += [(nodes[start], nodes[end], points) for start, end, points in ways]
        top = max(y for _, y in where.values()) + _LAYER
    return centres, routes


def _routes(
    segments: Iterable[tuple[int | str, int | str]], where: Mapping[int, Point], count: int
) -> Iterator[tuple[int, int, list[Point]]]:
    """Edges as the points that they go through. A bend has one segment before it and one behind it."""
    pairs = [(int(start), int(end)) for start, end in segments]
    following = {start: end for start, end in pairs if start >= count}
    for start, end in pairs:
        if start >= count:
            continue
        points = [where[start], where[end]]
        while end >= count:
            end = following[end]
            points.append(where[end])
        yield start, end, points


def _by_layer(edges: Sequence[Edge], layers: Sequence[int]) -> _Placed:
    """The same without the library: nodes of a layer in their order, centred."""
    rows: defaultdict[int, list[int]] = defaultdict(list)
    for node in sorted({node for edge in edges for node in edge}):
        rows[layers[node]].append(node)
    widest = max(map(len, rows.values()), default=1)
    centres: dict[int, Point] = {}
    for depth, row in enumerate(rows[layer] for layer in sorted(rows)):
        shift = (widest - len(row)) / 2
        for index, node in enumerate(row):
            x = (index + shift) * (WIDTH + _GAP_X) + WIDTH / 2 + _GAP_X
            centres[node] = x, depth * _LAYER + HEIGHT / 2 + _GAP_X
    return centres, [(a, b, [centres[a], centres[b]]) for a, b in edges]


def _place_alone(centres: dict[int, Point], alone: Sequence[int]) -> None:
    """Place nodes without edges in rows below all others."""
    top = max((y + _LAYER for _, y in centres.values()), default=HEIGHT / 2 + _GAP_X)
    for index, node in enumerate(alone):
        row, column = divmod(index, _IN_A_ROW)
        centres[node] = column * (WIDTH + _GAP_X) + WIDTH / 2 + _GAP_X, top + row * _LAYER
