"""Placement of the graph of a report: random graphs, long edges, nodes without edges."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from torchquilt.accuracy.report import placement
from torchquilt.accuracy.report.placement import HEIGHT, LONGEST, WIDTH, Placement, placed


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """Nodes, each of which reads some of those before it."""
    count = draw(st.integers(0, 24))
    pairs = list(itertools.combinations(range(count), 2))
    edges = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=40)) if pairs else []
    return count, edges


def check(count: int, edges: list[tuple[int, int]], found: Placement) -> None:
    """Each node has its own area, each edge leads down, and all of it is on the page."""
    assert len(found.centres) == count
    for (x, y), (other_x, other_y) in itertools.combinations(found.centres, 2):
        assert abs(x - other_x) >= WIDTH or abs(y - other_y) >= HEIGHT
    assert sorted([*((a, b) for a, b, _ in found.routes), *found.far]) == sorted(edges)
    for start, end, points in found.routes:
        assert (points[0], points[-1]) == (found.centres[start], found.centres[end])
        heights = [y for _, y in points]
        assert all(above < below for above, below in itertools.pairwise(heights))
    width, height = found.size
    for x, y in found.centres:
        assert WIDTH / 2 <= x <= width - WIDTH / 2
        assert HEIGHT / 2 <= y <= height - HEIGHT / 2


@example((9, [(0, 1), (0, 7), (2, 4), (4, 5), (2, 5), (2, 6), (5, 6)]))
@given(graphs())
def test_nodes_do_not_overlap_and_edges_lead_down(graph: tuple[int, list[tuple[int, int]]]) -> None:
    """Of any graph, in parts or not, with nodes that have no edge."""
    check(*graph, placed(*graph))


@given(graphs())
def test_so_it_is_without_the_library(graph: tuple[int, list[tuple[int, int]]]) -> None:
    """On Python 3.10, for which it has no release."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement, "find_spec", lambda name: None)
        check(*graph, placed(*graph))


def test_what_all_layers_read_is_not_drawn_to_all_of_them() -> None:
    """A mask: its first readers have an edge, those far below are told of and not drawn."""
    layers = 200
    chain = [(index, index + 1) for index in range(1, layers)]
    found = placed(layers + 1, [*chain, *((0, index) for index in range(2, layers, 10))])
    assert {a for a, _ in found.far} == {0}
    assert len(found.far) > 10
    near = [b for a, b, _ in found.routes if a == 0]
    assert near
    assert max(near) <= LONGEST + 3


def test_a_graph_is_placed_the_same_each_time() -> None:
    """Whatever the order in which its edges are given."""
    chance = random.Random(0)
    edges = [(index, min(index + chance.randint(1, 4), 299)) for index in range(299) for _ in range(2)]
    edges = sorted(set(edges))
    assert placed(300, edges) == placed(300, edges)
