"""Parts for XNNPACK's delegate: in no circle, no more than needed, and run as they were converted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import networkx
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import Graph, Node

import torchquilt as tq
from plugins.lowered import Lowered, lower
from strategies import normal, sqnr
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config
from torchquilt_xnnpack.parts import parts

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

WIDTH = 8
#: What a program has to agree with the quantized model in, in dB.
LEAST = 40.0

# ----------------------------------------------------------------------------------------------------------
# Graphs of nodes
# ----------------------------------------------------------------------------------------------------------

#: For each node which nodes before it are read, and the group it is in; negative is none.
Drawn = list[tuple[set[int], int]]


def graph_of(drawn: Drawn) -> tuple[Graph, list[list[Node]]]:
    """A graph of nodes that read what is drawn, and the groups of them."""
    graph = Graph()
    nodes = [graph.placeholder("x")]
    groups: dict[int, list[Node]] = {}
    for reads, group in drawn:
        read = [nodes[-1 - (number % len(nodes))] for number in sorted(reads)]
        nodes.append(graph.call_function(chain, tuple(dict.fromkeys(read))))
        if group >= 0:
            groups.setdefault(group, []).append(nodes[-1])
    graph.output(tuple(node for node in nodes if not node.users))
    return graph, [*groups.values()]


def joined(graph: Graph, groups: Iterable[Iterable[Node]]) -> networkx.DiGraph:
    """Readers of each group and node; a group is known by its number."""
    group_of = {node: number for number, group in enumerate(groups) for node in group}
    found = networkx.DiGraph()
    found.add_nodes_from(group_of.get(node, node) for node in graph.nodes)
    edges = (
        (group_of.get(node, node), group_of.get(user, user)) for node in graph.nodes for user in node.users
    )
    found.add_edges_from((one, other) for one, other in edges if one != other)
    return found


def fewest(graph: Graph, groups: list[list[Node]]) -> int:
    """The most groups on one path of which each but the first is reached by way of a node in none."""
    reached: dict[Any, int] = {}
    readers = joined(graph, groups)
    for one in networkx.topological_sort(readers):
        before = [
            reached[other] + (isinstance(one, int) and isinstance(other, Node)) for other in readers.pred[one]
        ]
        reached[one] = max([*before, int(isinstance(one, int))])
    return max(reached.values())


drawn_nodes = st.lists(
    st.tuples(st.sets(st.integers(0, 5), min_size=1, max_size=2), st.integers(-6, 8)), min_size=1, max_size=24
)


@settings(max_examples=300, deadline=None)
@given(drawn_nodes)
@example([({0}, 0), ({0}, -1), ({0}, 1), ({3}, 1), ({0}, -1), ({0}, 0)])  # two groups that read each other
@example([({0}, 0), ({0}, -1), ({0}, 0)])  # one that reads itself
def test_parts_of_any_groups_are_in_no_circle(drawn: Drawn) -> None:
    """Only groups in a circle are left out, and no group is divided."""
    graph, groups = graph_of(drawn)
    found = parts(graph.nodes, groups, ())
    assert networkx.is_directed_acyclic_graph(joined(graph, found))
    taken = {node for part in found for node in part}
    for group in groups:
        assert not taken.intersection(group) or any(set(group) <= set(part) for part in found)
    circles = networkx.strongly_connected_components(joined(graph, groups))
    within = {number for circle in circles if len(circle) > 1 for number in circle}
    reads_itself = {number for number, group in enumerate(groups) if _reads_itself(graph, group)}
    left = {number for number, group in enumerate(groups) if not taken.issuperset(group)}
    assert left <= within | reads_itself


def _reads_itself(graph: Graph, group: list[Node]) -> bool:
    return not networkx.is_directed_acyclic_graph(joined(graph, [group]))


@settings(max_examples=300, deadline=None)
@given(drawn_nodes)
def test_no_fewer_parts_are_possible(drawn: Drawn) -> None:
    """A path through the runtime needs a part for each time that it comes back to the delegate."""
    single = [(reads, number if group >= 0 else -1) for number, (reads, group) in enumerate(drawn)]
    graph, groups = graph_of(single)
    found = parts(graph.nodes, groups, ())
    assert sum(map(len, found)) == len(groups)
    assert len(found) == fewest(graph, groups)


def test_constants_join_nothing() -> None:
    """Each part has a copy of a constant, so a constant that two of them read is no dependency."""
    graph = Graph()
    weight, x = graph.placeholder("weight"), graph.placeholder("x")
    first = graph.call_function(chain, (x, weight))
    between = graph.call_function(chain, (first,))
    second = graph.call_function(chain, (between, weight))
    graph.output(second)
    assert parts(graph.nodes, [[first], [second, weight]], [weight]) == [[first], [weight, second]]


# ----------------------------------------------------------------------------------------------------------
# Models
# ----------------------------------------------------------------------------------------------------------


class Layers(nn.Module):
    """Linear layers, and a function of them and the inputs."""

    def __init__(self, count: int, function: Callable[..., Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count))
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        """Call the function with the layers first."""
        return self.function(self.layers, *inputs)


def left_to_the_runtime(value: Tensor) -> Tensor:
    """Compute something that the delegate has no kernel for, near 1 in size."""
    return torch.cumsum(value, -1) / WIDTH


def _interleaved(layers: nn.ModuleList, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """The first and the last layer are quantized together, around all others.

    Joined two by two, they are in one part with the layer that ends the path of ``y``, and the two others are
    in one part, too: each part reads the other.
    """
    first = layers[1](left_to_the_runtime(layers[0](x)))
    second = layers[3](left_to_the_runtime(layers[2](y)))
    return first, second, layers[4](x)


def _gated(layers: nn.ModuleList, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Gated layers whose gate and value read one tensor, with a residual, twice."""
    for first in (0, 3):
        gate = torch.sigmoid(left_to_the_runtime(layers[first](x)))
        x = x + layers[first + 2](gate * layers[first + 1](x)) + left_to_the_runtime(y)
    return x, layers[6](x)


def _one_layer(layers: nn.ModuleList, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """One layer called behind itself."""
    return layers[0](left_to_the_runtime(layers[0](x))) * layers[0](y), layers[0](left_to_the_runtime(y))


@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize(
    ("function", "count", "calls"),
    [(_interleaved, 5, 5), (_gated, 7, 7), (_one_layer, 1, 4)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_models_run_as_they_were_converted(
    function: Callable[..., Any], count: int, calls: int, is_dynamic: bool
) -> None:
    """Each layer runs as integers, and each output agrees with the quantized model."""
    check(Layers(count, function), calls, is_dynamic=is_dynamic)


Plan = list[tuple[str, int, int]]

#: How a value is made of two before it.
MAKING: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "linear": lambda layer, x, _: layer(x),
    "add": lambda _, x, y: x + y,
    "mul": lambda _, x, y: x * torch.tanh(y),
    "runtime": lambda _, x, __: left_to_the_runtime(x),
}


def _planned(plan: Plan) -> Layers:
    def function(layers: nn.ModuleList, *inputs: Tensor) -> tuple[Tensor, ...]:
        made = [*inputs]
        for layer, (name, first, second) in zip(layers, plan, strict=True):
            made.append(MAKING[name](layer, made[first % len(made)], made[second % len(made)]))
        return tuple(made[len(inputs) :])

    return Layers(len(plan), function)


plans = st.lists(
    st.tuples(
        st.sampled_from(["linear", "linear", "runtime", "runtime", "add", "mul"]),
        st.integers(0, 9),
        st.integers(0, 9),
    ),
    min_size=4,
    max_size=16,
).filter(lambda plan: any(name == "linear" for name, *_ in plan))


def check_plan(plan: Plan) -> None:
    """Lower a random model of dynamic layers, run it and compare."""
    check(_planned(plan), sum(name == "linear" for name, *_ in plan), is_dynamic=True)


@settings(max_examples=4, deadline=None)
@given(plans)
@example(
    [
        ("linear", 0, 0),
        ("runtime", 2, 0),
        ("linear", 3, 0),
        ("linear", 1, 0),
        ("runtime", 5, 0),
        ("linear", 6, 0),
        ("linear", 0, 0),
    ]
)
def test_random_models_run_as_they_were_converted(plan: Plan) -> None:
    """Graphs of dynamic layers, products, sums, and what is left to the runtime."""
    check_plan(plan)


@pytest.mark.exhaustive
@settings(max_examples=120, deadline=None)
@given(plans)
def test_many_random_models_run_as_they_were_converted(plan: Plan) -> None:
    """The same of many more."""
    check_plan(plan)


def check(model: Layers, calls: int, *, is_dynamic: bool) -> None:
    """Quantize, lower, run and compare."""
    torch.manual_seed(0)
    inputs = (normal(4, WIDTH, seed=1), normal(4, WIDTH, seed=2))
    for layer in model.layers:
        layer.weight.data.normal_(0, WIDTH**-0.5)
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    exported = torch.export.export(model.eval(), inputs)
    prepared = tq.prepare_pt2e(exported, XNNPACKQuantizer().set_global(config))
    converted = tq.convert_pt2e(tq.calibrate(prepared, [inputs]))
    lowered = lower(converted, *inputs)
    assert len([*_integer_layers(lowered)]) == calls, lowered.kernels
    for found, expected in zip(lowered.run(*inputs), converted(*inputs), strict=True):
        assert sqnr(expected, found) >= LEAST


def _integer_layers(lowered: Lowered) -> Iterator[str]:
    for kernel in lowered.program.kernels:
        if kernel.name == "FullyConnected" and kernel.arithmetic == "integer":
            yield str(kernel)
