"""Groups of tensors with one set of parameters, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx import GraphModule, Node

import torchquilt as tq
from strategies import INT8, ByFunction, Fn, export, normal, prepare, quantize
from torchquilt.pt2e.sharing_groups import Group, edge_name, find_groups
from torchquilt.spec.annotation import ANNOTATION_KEY

UINT8 = tq.QuantizationSpec("uint8")
DYNAMIC = tq.QuantizationSpec("int8", is_dynamic=True)
FIXED = tq.FixedQParamsQuantizationSpec("int8", 1 / 128, 0)
Annotation = tq.QuantizationAnnotation
Shared = tq.SharedQuantizationSpec


def chain_of(count: int) -> tuple[GraphModule, list[Node]]:
    """An exported chain of ``count`` sigmoids, and their nodes."""

    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        for _ in range(count):
            x = torch.sigmoid(x)
        return x

    model = export(Fn(forward), normal(2, 3)).module()
    return model, [node for node in model.graph.nodes if "sigmoid" in str(node.target)]


def names(groups: tuple[Group, ...]) -> list[set[str]]:
    """The edges and nodes of each group by name."""
    return [{edge_name(edge) for edge in group.members} for group in groups]


def test_an_input_without_a_spec_is_in_no_group() -> None:
    """None leaves an edge in float, beside others of the same tensor; nothing can be shared with it."""
    model, (a, b, c) = chain_of(3)
    b.meta[ANNOTATION_KEY] = Annotation({a: None}, INT8)
    c.meta[ANNOTATION_KEY] = Annotation({b: INT8}, None)
    assert names(find_groups(model.graph)) == [{b.name, f"{b.name} → {c.name}"}]
    c.meta[ANNOTATION_KEY] = Annotation({b: INT8}, Shared((a, b)))
    with pytest.raises(tq.SharingError, match="has no spec") as caught:
        find_groups(model.graph)
    assert caught.value.got == f"{a.name} → {b.name}"


def test_an_output_and_its_edges_with_one_spec_are_one_group() -> None:
    """A tensor that its producer and all its users ask for in the same way has one set of parameters."""
    model, (a, b, c) = chain_of(3)
    a.meta[ANNOTATION_KEY] = Annotation({}, INT8)
    b.meta[ANNOTATION_KEY] = Annotation({a: INT8}, INT8)
    c.meta[ANNOTATION_KEY] = Annotation({b: INT8})
    assert names(find_groups(model.graph)) == [
        {a.name, f"{a.name} → {b.name}"},
        {b.name, f"{b.name} → {c.name}"},
    ]


def test_an_output_and_an_edge_with_different_specs_are_two_groups() -> None:
    """Two users that want one tensor in different integer types get a set of parameters each."""
    model, (a, b) = chain_of(2)
    a.meta[ANNOTATION_KEY] = Annotation({}, INT8)
    b.meta[ANNOTATION_KEY] = Annotation({a: UINT8})
    groups = find_groups(model.graph)
    assert [group.spec for group in groups] == [INT8, UINT8]


def test_implicit_sharing_can_be_declined() -> None:
    """An edge of a node with allow_implicit_sharing=False has parameters of its own."""
    model, (a, b) = chain_of(2)
    a.meta[ANNOTATION_KEY] = Annotation({}, INT8)
    b.meta[ANNOTATION_KEY] = Annotation({a: INT8}, allow_implicit_sharing=False)
    assert names(find_groups(model.graph)) == [{a.name}, {f"{a.name} → {b.name}"}]


def test_a_tensor_that_is_joined_with_itself_is_quantized_once() -> None:
    """cat([x, x]) with shared parameters ends in one group and runs."""

    def decide(node: Node) -> Annotation | None:
        if "cat" not in str(node.target):
            return None
        x = node.all_input_nodes[0]
        return Annotation({x: INT8}, Shared((x, node)))

    x = normal(2, 3)
    model = Fn(lambda _, x: torch.cat([x, x], 1))
    prepared = prepare(model, ByFunction(decide), x)
    (point,) = [m for n, m in prepared.named_modules() if n.startswith("quantization_point")]
    assert set(point.names) == {"args_0 → cat", "cat"}
    quantized = tq.convert_pt2e(tq.calibrate(prepared, [(x,)]))
    assert torch.allclose(quantized(x), model(x), atol=0.05)


def test_the_place_that_is_shared_with_may_come_later() -> None:
    """An early tensor can take the parameters of one that is computed after it."""
    model, (a, _, c) = chain_of(3)
    a.meta[ANNOTATION_KEY] = Annotation({}, Shared(c))
    c.meta[ANNOTATION_KEY] = Annotation({}, INT8)
    (group,) = find_groups(model.graph)
    assert group.members == (a, c)
    assert group.spec == INT8


def test_a_chain_of_shared_specs_is_one_group() -> None:
    """Sharing with a node that shares with another one reaches the spec at the end of the chain."""
    model, nodes = chain_of(6)
    for node, following in pairwise(nodes):
        node.meta[ANNOTATION_KEY] = Annotation({}, Shared(following))
    nodes[-1].meta[ANNOTATION_KEY] = Annotation({}, UINT8)
    (group,) = find_groups(model.graph)
    assert group.members == tuple(nodes)
    assert group.spec == UINT8


def test_implicit_sharing_sees_the_spec_that_was_settled() -> None:
    """A user's edge joins the group of an output whose spec is shared, when both come to the same spec."""
    model, (a, b, c) = chain_of(3)
    a.meta[ANNOTATION_KEY] = Annotation({}, INT8)
    b.meta[ANNOTATION_KEY] = Annotation({a: Shared(a)}, Shared(a))
    c.meta[ANNOTATION_KEY] = Annotation({b: INT8})
    (group,) = find_groups(model.graph)
    assert group.members == (a, (a, b), b, (b, c))


def test_a_circle_is_an_error_that_prints_the_chain() -> None:
    """The error follows the circle from each node to the one that it points at, and back to the first."""
    model, (a, b, c) = chain_of(3)
    for node, other in ((a, c), (c, b), (b, a)):
        node.meta[ANNOTATION_KEY] = Annotation({}, Shared(other), quantizer="acme")
    with pytest.raises(tq.SharingError, match="circle") as caught:
        find_groups(model.graph)
    assert caught.value.node == f"{a.name} → {c.name} → {b.name} → {a.name}"
    assert caught.value.quantizer == "acme"


def test_what_leads_into_a_circle_is_not_printed() -> None:
    """Only the edges and nodes that have to be changed are named; an edge is told from the arrows of the
    chain.
    """
    model, (a, b, c) = chain_of(3)
    a.meta[ANNOTATION_KEY] = Annotation({}, Shared(b))
    b.meta[ANNOTATION_KEY] = Annotation({}, Shared((b, c)))
    c.meta[ANNOTATION_KEY] = Annotation({b: Shared(b)})
    with pytest.raises(tq.SharingError, match="circle") as caught:
        find_groups(model.graph)
    assert caught.value.node == f"{b.name} → ({b.name} → {c.name}) → {b.name}"


def test_sharing_with_oneself_is_a_circle() -> None:
    """The smallest circle is refused, too, and does not hang; an annotation need not name its quantizer."""
    model, (a,) = chain_of(1)
    a.meta[ANNOTATION_KEY] = Annotation({}, Shared(a))
    with pytest.raises(tq.SharingError, match="from itself") as caught:
        find_groups(model.graph)
    assert caught.value.quantizer == "unnamed"


def test_inputs_that_share_parameters_are_one_edge_where_an_operator_reads_one_tensor_twice() -> None:
    """As Samsung's quantizer annotates the second input of an addition, also in ``x + x``."""
    model, (a, b) = chain_of(2)
    b.meta[ANNOTATION_KEY] = Annotation({a: Shared((a, b))}, Shared((a, b)))
    with pytest.raises(tq.SharingError, match="what reads one tensor twice has one edge") as caught:
        find_groups(model.graph)
    assert caught.value.problem == "An edge or node takes its parameters from itself."
    assert caught.value.node == f"{a.name} → {b.name}"
    assert caught.value.__cause__ is None


def test_sharing_with_a_place_without_a_spec_is_refused() -> None:
    """The error names both edges."""
    model, (a, b) = chain_of(2)
    b.meta[ANNOTATION_KEY] = Annotation({a: Shared(a)}, quantizer="acme")
    with pytest.raises(tq.SharingError) as caught:
        find_groups(model.graph)
    assert caught.value.node == f"{a.name} → {b.name}"
    assert caught.value.got == a.name
    assert caught.value.quantizer == "acme"


# ----------------------------------------------------------------------------------------------------------
# Ordinary, fixed, derived and dynamic specs
# ----------------------------------------------------------------------------------------------------------


def same(qparams: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Derive the parameters of the first source, as they are."""
    return qparams[0]


def derived(*sources: Any) -> tq.DerivedQuantizationSpec:
    """The parameters of the first of several edges."""
    return tq.DerivedQuantizationSpec(sources, same, "int8")


@pytest.mark.parametrize("kind", ["fixed", "derived"])
def test_the_root_decides_whatever_kind_it_is(kind: str) -> None:
    """A node that shares has the spec at the end, be it a known one or a derived one."""
    model, (a, b, c) = chain_of(3)
    root = FIXED if kind == "fixed" else derived(a)
    a.meta[ANNOTATION_KEY] = Annotation({}, UINT8)
    b.meta[ANNOTATION_KEY] = Annotation({a: Shared(b)}, Shared(c))
    c.meta[ANNOTATION_KEY] = Annotation({}, root)
    assert [(group.spec, group.members) for group in find_groups(model.graph)] == [
        (UINT8, (a,)),
        (root, ((a, b), b, c)),
    ]


def test_implicit_sharing_never_mixes_kinds() -> None:
    """One tensor that is asked for with an ordinary, a fixed and a derived spec is in three groups."""
    model, (a, b) = chain_of(2)
    (x,) = (node for node in model.graph.nodes if node.op == "placeholder")
    x.meta[ANNOTATION_KEY] = Annotation({}, INT8)
    a.meta[ANNOTATION_KEY] = Annotation({x: FIXED}, INT8)
    b.meta[ANNOTATION_KEY] = Annotation({a: derived(x)})
    assert names(find_groups(model.graph)) == [
        {x.name},
        {f"{x.name} → {a.name}"},
        {a.name},
        {f"{a.name} → {b.name}"},
    ]


def test_equal_derived_specs_of_one_tensor_are_joined() -> None:
    """An output and an edge that are derived from the same edge by the same function are one group."""
    model, (a, b) = chain_of(2)
    (x,) = (node for node in model.graph.nodes if node.op == "placeholder")
    x.meta[ANNOTATION_KEY] = Annotation({}, INT8)
    a.meta[ANNOTATION_KEY] = Annotation({}, derived(x))
    b.meta[ANNOTATION_KEY] = Annotation({a: derived(x)})
    assert names(find_groups(model.graph)) == [{x.name}, {a.name, f"{a.name} → {b.name}"}]


def test_a_spec_that_is_derived_from_itself_is_a_circle() -> None:
    """A node cannot have parameters that are computed from its own."""
    model, (a,) = chain_of(1)
    a.meta[ANNOTATION_KEY] = Annotation({}, derived(a))
    with pytest.raises(tq.SharingError, match="from itself") as caught:
        find_groups(model.graph)
    assert caught.value.node == a.name


def test_a_spec_that_is_derived_from_itself_through_sharing_is_a_circle() -> None:
    """The source shares with what is derived from it: the chain shows how, and who wrote it."""
    model, (a, b, c) = chain_of(3)
    a.meta[ANNOTATION_KEY] = Annotation({}, Shared(c), quantizer="first")
    b.meta[ANNOTATION_KEY] = Annotation({a: INT8}, derived((a, b), a), quantizer="second")
    c.meta[ANNOTATION_KEY] = Annotation({}, Shared(b), quantizer="first")
    with pytest.raises(tq.SharingError, match="circle") as caught:
        find_groups(model.graph)
    assert caught.value.node == f"{a.name} → {c.name} → {b.name} → {a.name}"
    assert caught.value.quantizer == "first, second"


def test_a_source_without_a_spec_is_refused() -> None:
    """Nothing can be derived from a tensor that stays in float."""
    model, (a, b) = chain_of(2)
    b.meta[ANNOTATION_KEY] = Annotation({a: derived(a)}, quantizer="acme")
    with pytest.raises(tq.SharingError, match="derives") as caught:
        find_groups(model.graph)
    assert (caught.value.node, caught.value.got) == (f"{a.name} → {b.name}", a.name)
    assert caught.value.quantizer == "acme"


def test_dynamic_parameters_are_not_shared_between_tensors() -> None:
    """Each tensor finds its own when the model runs, so a second one cannot have them."""
    model, (a, b) = chain_of(2)
    a.meta[ANNOTATION_KEY] = Annotation({}, DYNAMIC)
    b.meta[ANNOTATION_KEY] = Annotation({a: DYNAMIC}, Shared((a, b)), quantizer="acme")
    with pytest.raises(tq.SharingError, match="dynamic") as caught:
        find_groups(model.graph)
    assert (caught.value.node, caught.value.quantizer) == (b.name, "acme")


def test_places_of_one_tensor_share_dynamic_parameters() -> None:
    """One operator finds the parameters for all users of the tensor."""
    model, (a, b) = chain_of(2)
    a.meta[ANNOTATION_KEY] = Annotation({}, DYNAMIC)
    b.meta[ANNOTATION_KEY] = Annotation({a: Shared(a)})
    assert names(find_groups(model.graph)) == [{a.name, f"{a.name} → {b.name}"}]


def test_nothing_is_derived_from_dynamic_parameters() -> None:
    """A bias, say, is quantized before the model runs, when the scale of a dynamic input is not known."""
    model, (a, b) = chain_of(2)
    a.meta[ANNOTATION_KEY] = Annotation({}, DYNAMIC)
    b.meta[ANNOTATION_KEY] = Annotation({}, derived(a))
    with pytest.raises(tq.SharingError, match="dynamic") as caught:
        find_groups(model.graph)
    assert caught.value.node == b.name
    assert a.name in str(caught.value.got)


def joined_with_fixed(node: Node) -> Annotation | None:
    """A sigmoid with known parameters, whose output is joined with the scale of the other tensor."""
    if "sigmoid" in str(node.target):
        return Annotation({}, FIXED)
    if "cat" in str(node.target):
        first, second = node.all_input_nodes
        return Annotation({first: INT8, second: Shared((first, node))}, Shared((first, node)))
    return None


def test_what_shares_with_a_fixed_spec_has_its_parameters() -> None:
    """An operator that follows a tensor of known parameters has the same ones, without calibration."""

    def decide(node: Node) -> Annotation | None:
        if "sigmoid" in str(node.target):
            return Annotation({}, tq.FixedQParamsQuantizationSpec("uint8", 1 / 256, 0))
        if "permute" in str(node.target):
            source = node.all_input_nodes[0]
            return Annotation({source: Shared(source)}, Shared(source))
        return None

    x = normal(3, 4)
    model = Fn(lambda _, x: torch.sigmoid(x).permute(1, 0))
    quantized = tq.convert_pt2e(prepare(model, ByFunction(decide), x))
    scales = {node.args[1:3] for node in quantized.graph.nodes if "quantize_per_tensor" in str(node.target)}
    assert scales == {(1 / 256, 0)}
    assert torch.allclose(quantized(x), model(x), atol=1 / 512 + 1e-6)


def test_a_fixed_output_can_be_requantized_to_the_scale_of_its_user() -> None:
    """A tensor with known parameters that is joined with one of a wider range comes out right."""
    x = normal(3, 4) * 20
    model = Fn(lambda _, x: torch.cat([x, torch.sigmoid(x)]))
    quantized = quantize(model, ByFunction(joined_with_fixed), x)
    step = float(x.max() - x.min().clamp(max=0)) / 255
    assert torch.allclose(quantized(x), model(x), atol=step)


@pytest.mark.parametrize("given_as", ["different dtype", "different range"])
def test_two_users_of_one_tensor_may_have_different_scales(given_as: str) -> None:
    """Each edge is quantized as its user asks, and both users get a value within a step of the float one."""
    other = UINT8 if given_as == "different dtype" else tq.QuantizationSpec("int8", -8, 7)

    def decide(node: Node) -> Annotation | None:
        spec = {"aten.neg.default": INT8, "aten.abs.default": other}.get(str(node.target))
        return Annotation({node.all_input_nodes[0]: spec}) if spec else None

    x = normal(3, 4)
    model = Fn(lambda _, x: (torch.neg(x), torch.abs(x)))
    quantized = quantize(model, ByFunction(decide), x)
    for got, want in zip(quantized(x), model(x), strict=True):
        assert torch.allclose(got, want, atol=0.5)
        assert not torch.equal(got, want)


# ----------------------------------------------------------------------------------------------------------
# The order in which annotations were written does not matter
# ----------------------------------------------------------------------------------------------------------


@st.composite
def sharings(draw: st.DrawFn) -> tuple[list[tuple[int, int | None, int | None]], list[int]]:
    """For each node of a chain: its number, whom its output and whom its input edge shares with; an order.

    None is a spec of its own. A sharing points anywhere, so circles occur as well.
    """
    count = draw(st.integers(2, 7))
    target = st.none() | st.integers(0, count - 1)
    rows = [(number, draw(target), draw(target)) for number in range(count)]
    return rows, draw(st.permutations(range(count)))


def annotate_sharings(rows: list[tuple[int, int | None, int | None]], order: list[int]) -> GraphModule:
    """A chain of operators annotated in an order."""
    model, nodes = chain_of(len(rows))
    for position in order:
        number, output, edge = rows[position]
        node = nodes[number]
        own = INT8 if number % 2 else UINT8
        inputs = {} if number == 0 else {nodes[number - 1]: own if edge is None else Shared(nodes[edge])}
        node.meta[ANNOTATION_KEY] = Annotation(inputs, own if output is None else Shared(nodes[output]))
    return model


def outcome(model: GraphModule) -> Any:
    """The groups by name with their specs, or the kind of the refusal."""
    try:
        groups = find_groups(model.graph)
    except tq.SharingError as error:
        return error.problem
    return [(str(group.spec), [edge_name(edge) for edge in group.members]) for group in groups]


@settings(max_examples=60)
@given(sharings())
def test_groups_do_not_depend_on_the_order_of_annotation(case: Any) -> None:
    """However the annotations were written one after the other, the groups are the same."""
    rows, order = case
    assert outcome(annotate_sharings(rows, order)) == outcome(annotate_sharings(rows, list(range(len(rows)))))


@settings(max_examples=60)
@given(sharings())
def test_each_place_is_in_one_group_with_whom_it_shares(case: Any) -> None:
    """Every annotated edge or node has one group, and one that shares is in that of the one that it names."""
    rows, order = case
    model = annotate_sharings(rows, order)
    try:
        groups = find_groups(model.graph)
    except tq.SharingError:
        return
    member = {edge: number for number, group in enumerate(groups) for edge in group.members}
    assert len(member) == sum(len(group.members) for group in groups)
    for node in model.graph.nodes:
        annotation = tq.annotation_of(node)
        if annotation is None:
            continue
        asked = {(source, node): spec for source, spec in annotation.input_qspec_map.items()}
        asked[node] = annotation.output_qspec
        for edge, spec in asked.items():
            if isinstance(spec, Shared):
                assert member[edge] == member[spec.edge_or_node]
            else:
                assert groups[member[edge]].spec == spec


def test_long_chains_of_sharing_are_followed_to_the_end() -> None:
    """A chain of 4,000 shared specs is one group (and meets no limit of recursion)."""
    graph = torch.fx.Graph()
    nodes = [graph.placeholder("x")]
    for _ in range(4000):
        nodes.append(graph.call_function(torch.ops.aten.sigmoid.default, (nodes[-1],)))
    for node, following in pairwise(nodes[1:]):
        node.meta[ANNOTATION_KEY] = Annotation({}, Shared(following))
    nodes[-1].meta[ANNOTATION_KEY] = Annotation({}, INT8)
    (group,) = find_groups(graph)
    assert len(group.members) == 4000
