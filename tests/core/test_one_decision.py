"""One decision: a quantizer looks at a graph once, and what it claims is rewritten once all have decided."""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Node

import torchquilt as tq
from strategies import Fn, annotated, calls, export, normal
from torchquilt.backend import (
    FLOAT32,
    Match,
    OperatorPattern,
    Sharing,
    Value,
    call_before,
    call_behind,
    part,
    write_as,
)
from torchquilt.backend import operators as ops
from torchquilt.graph.passes import watching
from torchquilt.quantizers import matching
from torchquilt.spec.annotation import ANNOTATION_KEY
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

STATIC = get_symmetric_quantization_config(is_per_channel=True)
DYNAMIC = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
INT8 = tq.QuantizationSpec("int8")
X = normal(2, 6)


class Model(nn.Module):
    """Operators of several quantizers, in two branches and behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 6)
        self.small, self.large, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Choose a branch."""
        hidden = torch.cond(
            x.sum() > 0, lambda x: self.large(x).flatten(1) + 1, lambda x: self.small(x).relu(), (x,)
        )
        return (self.last(hidden) + self.embedding(indices)).squeeze(0)


class Listening(tq.Quantizer):
    """Annotates nothing. Keeps how often it was asked about each graph, and what was annotated by then."""

    def __init__(self) -> None:
        self.asked: Counter[int] = Counter()
        self.seen: list[set[str]] = []

    def annotate(self, model: GraphModule) -> GraphModule:
        """Listen."""
        self.asked[id(model)] += 1
        self.seen.append({found.quantizer for found in annotated(model).values()})
        return model


def composition(*more: tq.Quantizer) -> tq.ComposableQuantizer:
    """Three quantizers with tables, one of them in a composition of its own, and others."""
    first = XNNPACKQuantizer().set_object_type(nn.Linear, DYNAMIC)
    inner = tq.ComposableQuantizer([first, *more])
    return tq.ComposableQuantizer(
        [ExecuTorchEmbeddingQuantizer(), inner, XNNPACKQuantizer().set_global(STATIC)]
    )


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, int]]:
    """Counts looks, by the ids of the intent and of the graph."""
    found: Counter[tuple[int, int]] = Counter()
    held = []
    init = matching.Matcher.__init__

    def counted(self: matching.Matcher, table: Any, intent: Any, facts: matching.GraphFacts) -> None:
        held.append((intent, facts.graph))
        found[id(intent), id(facts.graph)] += 1
        init(self, table, intent, facts)

    monkeypatch.setattr(matching.Matcher, "__init__", counted)
    return found


@pytest.mark.parametrize("deed", [tq.prepare_pt2e, tq.explain])
def test_a_quantizer_looks_at_each_graph_once(deed: Any, looks: Counter[tuple[int, int]]) -> None:
    """At the model and at each branch, also to say why something stays in float and which rule is unmet."""
    program = export(Model(), X, torch.tensor([1]))
    listening = Listening()
    deed(program, composition(listening).quantizers[1], strict=False)
    deed(program, composition(listening), strict=False)
    assert set(looks.values()) == {1}
    assert len(looks) == 3 * (1 + 3)  # graphs, times quantizers with tables
    assert set(listening.asked.values()) == {1}


def test_one_that_annotates_by_itself_sees_what_is_taken(looks: Counter[tuple[int, int]]) -> None:
    """By those before it, and not yet by those behind it."""
    listening = Listening()
    tq.prepare_pt2e(export(Model(), X, torch.tensor([1])), composition(listening), strict=False)
    names = {"ExecuTorchEmbeddingQuantizer", "XNNPACKQuantizer"}
    assert listening.seen[0] == names
    assert all(seen <= names for seen in listening.seen)


# ----------------------------------------------------------------------------------------------------------
# Rewriting
# ----------------------------------------------------------------------------------------------------------

SPEC = tq.AllowedSpec("int8", -128, 127, ("per_tensor",), symmetric=False)
SPECS = {"input_activation": (SPEC,), "output_activation": (SPEC,)}
CONFIG = tq.QuantizationConfig(input_activation=INT8, output_activation=INT8)


def as_relu(_: GraphModule, match: Match) -> None:
    """The sigmoid of the tests becomes a relu, which shows in what is computed."""
    write_as(match.anchor, torch.ops.aten.relu.default, match.anchor.args[0])


def with_a_tail(model: GraphModule, match: Match) -> None:
    """The same, and a tensor behind it that readers read."""
    as_relu(model, match)
    call_behind(model, match.anchor, torch.ops.aten.neg.default)


def table(*rewrite: Any, rows: tuple[ops.Operator, ...] = (ops.RELU,)) -> tq.SupportTable:
    """Sigmoids in the form that a test wants, and some other rows."""
    sigmoid = ops.Operator(
        "sigmoid", ("aten.sigmoid.default",), (ops.Operand("input_activation", 0, "self"),)
    )
    first = tq.SupportRow(tq.OperatorPattern.of(sigmoid), SPECS, constraints=(FLOAT32,), rewrite=rewrite)
    others = (tq.SupportRow(tq.OperatorPattern.of(op), SPECS, constraints=(FLOAT32,)) for op in rows)
    return tq.SupportTable("toy", (first, *others))


def asked(*rewrite: Any, **rest: Any) -> tq.PatternQuantizer:
    """A quantizer that is asked for sigmoids."""
    quantizer = tq.PatternQuantizer(table(*rewrite, **rest))
    return quantizer.set_object_type(torch.ops.aten.sigmoid.default, CONFIG)


def two(m: Any, x: torch.Tensor) -> torch.Tensor:
    """A sigmoid that is asked for, and one that is not."""
    return torch.tanh(m.first(torch.sigmoid(x)))


PROGRAM = export(Fn(two, first=nn.Sequential(nn.Sigmoid())), X)


def test_what_is_claimed_is_rewritten_and_nothing_else() -> None:
    """The annotation is that of the form that it has then, and the ledger speaks of what the model had."""
    quantizer = asked(as_relu).set_module_name("first", None)
    prepared = tq.prepare_pt2e(PROGRAM, quantizer)
    (relu,), (sigmoid,) = calls(prepared, "relu"), calls(prepared, "sigmoid")
    assert {name: found.pattern for name, found in annotated(prepared).items()} == {relu.name: "relu"}
    assert tq.annotation_of(sigmoid) is None
    rows = {row.node: row for row in tq.ledger_of(prepared)}
    assert rows[relu.name].op == "aten.sigmoid.default"
    assert rows[relu.name].quantizer == "PatternQuantizer"
    assert rows[sigmoid.name].quantizer is None


def test_a_form_that_the_table_does_not_take_is_an_error() -> None:
    """It names the row, the node and the quantizer, before anything is calibrated."""
    with pytest.raises(
        tq.QuantizerError, match="The rewrite of the row sigmoid writes a form that no row"
    ) as caught:
        tq.prepare_pt2e(PROGRAM, asked(as_relu, rows=(ops.CLAMP,)))
    assert caught.value.quantizer == "PatternQuantizer"
    assert "sigmoid" in str(caught.value.node)
    assert "add the row" in str(caught.value.remedy)


def test_a_rewrite_that_fails_is_named() -> None:
    """With the row, the node and the quantizer; what it raised is the cause."""

    def broken(_: GraphModule, match: Match) -> None:
        raise ZeroDivisionError("a mistake")

    with pytest.raises(tq.QuantizerError, match="The rewrite of the row sigmoid failed") as caught:
        tq.prepare_pt2e(PROGRAM, asked(broken))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.quantizer == "PatternQuantizer"


def new_node_without_value(model: GraphModule, match: Match) -> None:
    """Calls an operator beside the functions for that."""
    with model.graph.inserting_before(match.anchor):
        relu = model.graph.call_function(torch.ops.aten.relu.default, match.anchor.args)
    write_as(match.anchor, torch.ops.aten.relu.default, relu)


def one_input_without_value(model: GraphModule, match: Match) -> None:
    """The same, for one of two inputs."""
    (source,) = match.anchor.args
    with model.graph.inserting_before(match.anchor):
        relu = model.graph.call_function(torch.ops.aten.relu.default, (source,))
    write_as(match.anchor, torch.ops.aten.add.Tensor, source, relu)


def written_node_without_place(_: GraphModule, match: Match) -> None:
    """Forgets from which module the operator comes."""
    write_as(match.anchor, torch.ops.aten.relu.default, match.anchor.args[0])
    del match.anchor.meta["nn_module_stack"]


@pytest.mark.parametrize(
    "careless", [new_node_without_value, one_input_without_value, written_node_without_place]
)
def test_what_a_rewrite_leaves_fulfils_the_invariants(careless: Any) -> None:
    """A node without a recorded value or origin would fail much later, or be told wrongly."""
    # The watcher of all tests would find it, too; without it, the flow itself has to.
    with watching(lambda name, model: None), pytest.raises(tq.ModelError, match="rewrite_claims"):
        tq.prepare_pt2e(PROGRAM, asked(careless, rows=(ops.RELU, ops.ADD)))


class Reading(tq.Quantizer):
    """Quantizes what a tanh reads, and its output with the same parameters."""

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate."""
        for node in calls(model, "tanh"):
            (source,) = node.all_input_nodes
            shared = tq.SharedQuantizationSpec((source, node))
            tq.annotate_node(node, tq.QuantizationAnnotation({source: INT8}, shared))
        return model


@pytest.mark.parametrize("is_first", [True, False])
def test_annotations_follow_what_a_rewrite_puts_behind_an_operator(is_first: bool) -> None:
    """In either order: the quantizer decided about the model, and reads what stands there now."""
    quantizers = [Reading(), asked(with_a_tail)] if is_first else [asked(with_a_tail), Reading()]
    prepared = tq.prepare_pt2e(PROGRAM, tq.ComposableQuantizer(quantizers))
    (tanh,) = calls(prepared, "tanh")
    annotation = tq.annotation_of(tanh)
    assert annotation is not None
    (source,) = annotation.input_qspec_map
    assert source.target is torch.ops.aten.neg.default
    assert annotation.output_qspec == tq.SharedQuantizationSpec((source, tanh))
    prepared(X)
    found = tq.convert_pt2e(prepared)(X)
    expected = torch.tanh(-torch.relu(-torch.relu(X)))
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


def only_a_tail(model: GraphModule, match: Match) -> None:
    """The operator as it is, and a tensor behind it."""
    call_behind(model, match.anchor, torch.ops.aten.neg.default)


def two_tails(model: GraphModule, match: Match) -> None:
    """A relu and two tensors behind it, of which the second helps the first."""
    with_a_tail(model, match)
    (tail,) = match.anchor.users
    call_behind(model, tail, torch.ops.aten.abs.default)


def in_another_node(model: GraphModule, match: Match) -> None:
    """The anchor is erased, and another node stands there."""
    node = match.anchor
    node.replace_all_uses_with(call_before(model, node, torch.ops.aten.relu.default, node.args[0]))
    model.graph.erase_node(node)


class OfOutput(tq.Quantizer):
    """Quantizes what a tanh reads, and its output as that of the operator before."""

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate."""
        for node in calls(model, "tanh"):
            (source,) = node.all_input_nodes
            tq.annotate_node(
                node, tq.QuantizationAnnotation({source: INT8}, tq.SharedQuantizationSpec(source))
            )
        return model


#: Operators that the core has no names for.
NEG, ABS = (
    ops.Operator(name, (f"aten.{name}.default",), (ops.Operand("input_activation", 0, "self"),))
    for name in ("neg", "abs")
)
ONE = export(Fn(lambda _, x: torch.tanh(torch.sigmoid(x))), X)


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("other", [Reading(), OfOutput()])
@pytest.mark.parametrize(
    ("rewrite", "function"),
    [
        (only_a_tail, lambda x: -torch.sigmoid(x)),
        (with_a_tail, lambda x: -torch.relu(x)),
        (two_tails, lambda x: torch.abs(torch.relu(x))),
        (in_another_node, torch.relu),
    ],
)
def test_annotations_name_what_stands_for_a_rewritten_output(
    rewrite: Any, function: Any, other: tq.Quantizer, is_first: bool
) -> None:
    """All operators that the rewrite makes and that the table has rows for are quantized."""
    toy = asked(rewrite, rows=(ops.RELU, NEG, ABS))
    prepared = tq.prepare_pt2e(ONE, tq.ComposableQuantizer([other, toy] if is_first else [toy, other]))
    assert len(annotated(prepared)) == len(calls(prepared, "aten"))
    (tanh,) = calls(prepared, "tanh")
    annotation = tq.annotation_of(tanh)
    assert annotation is not None
    (read,) = annotation.input_qspec_map
    assert read is calls(prepared, "aten")[-2]
    shared = read if isinstance(other, OfOutput) else (read, tanh)
    assert annotation.output_qspec == tq.SharedQuantizationSpec(shared)
    (row, _) = tq.ledger_of(prepared)
    assert len(row.written_as) == len(calls(prepared, "aten")) - 1 or rewrite is in_another_node
    prepared(X)
    torch.testing.assert_close(tq.convert_pt2e(prepared)(X), torch.tanh(function(X)), atol=0.05, rtol=0)


class SharingWithAnInput(tq.Quantizer):
    """Annotates tanh with a spec that shares the parameters of the sigmoid's input."""

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate."""
        (tanh,), (sigmoid,) = calls(model, "tanh"), calls(model, "sigmoid")
        (source,) = sigmoid.all_input_nodes
        shared = tq.SharedQuantizationSpec((source, sigmoid))
        tq.annotate_node(tanh, tq.QuantizationAnnotation({sigmoid: shared}))
        return model


def shared_edge(prepared: GraphModule) -> tuple[Node, Node]:
    """The edge that tanh shares parameters with, after a rewrite."""
    (tanh,) = calls(prepared, "tanh")
    annotation = tq.annotation_of(tanh)
    assert annotation is not None
    (spec,) = annotation.input_qspec_map.values()
    assert isinstance(spec, tq.SharedQuantizationSpec)
    assert isinstance(spec.edge_or_node, tuple)
    return spec.edge_or_node


def test_an_edge_into_what_is_rewritten_is_the_one_that_stands_there() -> None:
    """A spec of another quantizer shares the parameters of an input that a new node reads now."""

    def with_a_head(model: GraphModule, match: Match) -> None:
        head = call_before(model, match.anchor, torch.ops.aten.neg.default, match.anchor.args[0])
        write_as(match.anchor, torch.ops.aten.relu.default, head)

    quantizers = [asked(with_a_head, rows=(ops.RELU, NEG)), SharingWithAnInput()]
    prepared = tq.prepare_pt2e(ONE, tq.ComposableQuantizer(quantizers))
    (head,) = calls(prepared, "neg")
    assert shared_edge(prepared) == (prepared.graph.find_nodes(op="placeholder")[0], head)


def test_an_edge_that_a_rewrite_leaves_is_the_one_that_it_was() -> None:
    """Though a new node reads the tensor as well."""

    def gated(model: GraphModule, match: Match) -> None:
        (source,) = match.anchor.args
        gate = call_before(model, match.anchor, torch.ops.aten.neg.default, source)
        write_as(match.anchor, torch.ops.aten.mul.Tensor, source, gate)

    quantizers = [asked(gated, rows=(ops.MUL, NEG)), SharingWithAnInput()]
    prepared = tq.prepare_pt2e(ONE, tq.ComposableQuantizer(quantizers))
    (product,) = calls(prepared, "mul")
    assert shared_edge(prepared) == (prepared.graph.find_nodes(op="placeholder")[0], product)


def test_a_rewrite_may_read_its_input_in_several_new_nodes() -> None:
    """All of them are quantized."""

    def in_parts(model: GraphModule, match: Match) -> None:
        (source,) = match.anchor.args
        parts = [
            call_before(model, match.anchor, overload, source)
            for overload in (torch.ops.aten.neg.default, torch.ops.aten.abs.default)
        ]
        write_as(match.anchor, torch.ops.aten.add.Tensor, *parts)

    prepared = tq.prepare_pt2e(ONE, asked(in_parts, rows=(ops.ADD, NEG, ABS)))
    assert {found.pattern for found in annotated(prepared).values()} == {"add", "neg", "abs"}


def in_another_shape(_: GraphModule, match: Match) -> None:
    """A sum over the rows is no sigmoid."""
    write_as(match.anchor, torch.ops.aten.sum.dim_IntList, match.anchor.args[0], [0], True)


def of_a_neighbour(_: GraphModule, match: Match) -> None:
    """A reader of the match is not part of it."""
    for user in list(match.anchor.users):
        write_as(user, torch.ops.aten.abs.default, match.anchor)


def as_a_value(model: GraphModule, _: Match) -> GraphModule:
    """Return something, as a pass does that makes another model."""
    return GraphModule(model, model.graph)


def beside_its_rows(model: GraphModule, match: Match) -> None:
    """The table has a row for what helps, and none for what does the work."""
    head = call_before(model, match.anchor, torch.ops.aten.relu.default, match.anchor.args[0])
    write_as(match.anchor, torch.ops.aten.abs.default, head)


def in_another_node_beside_its_rows(model: GraphModule, match: Match) -> None:
    """The anchor is erased, and the table has no row for the node in its stead."""
    node = match.anchor
    node.replace_all_uses_with(call_before(model, node, torch.ops.aten.abs.default, node.args[0]))
    model.graph.erase_node(node)


def in_place(_: GraphModule, match: Match) -> None:
    """Others may read what the operator reads."""
    write_as(match.anchor, torch.ops.aten.relu_.default, match.anchor.args[0])


@pytest.mark.parametrize(
    ("rewrite", "text"),
    [
        (in_place, "writes into a tensor"),
        (in_another_shape, "returns another tensor"),
        (of_a_neighbour, "changes a node that is not of its match"),
        (as_a_value, "returned something"),
        (beside_its_rows, "writes a form that no row"),
        (in_another_node_beside_its_rows, "writes a form that no row"),
    ],
)
def test_a_rewrite_that_does_more_or_less_than_it_says_is_an_error(rewrite: Any, text: str) -> None:
    """Of the row, with node, quantizer and remedy; nothing is computed wrongly or left in float silently."""
    with pytest.raises(
        tq.QuantizerError, match=f"The .* row sigmoid {text}|The row sigmoid {text}"
    ) as caught:
        tq.prepare_pt2e(ONE, asked(rewrite))
    assert caught.value.node
    assert caught.value.quantizer == "PatternQuantizer"
    assert caught.value.remedy


def test_a_form_reads_what_is_computed_before_it() -> None:
    """A rewrite that reads a later tensor is noticed, though it makes no node."""

    def too_early(_: GraphModule, match: Match) -> None:
        (reader,) = match.anchor.users
        write_as(match.anchor, torch.ops.aten.add.Tensor, match.anchor.args[0], reader)

    with pytest.raises(tq.ModelError, match="The invariant 'order' does not hold"):
        tq.prepare_pt2e(ONE, asked(too_early, rows=(ops.ADD,)))


def test_a_form_in_float_behind_which_another_follows_is_its_rows_fault() -> None:
    """Not that of the quantizer that follows."""
    row = tq.SupportRow(OperatorPattern.of(ops.VIEW), SPECS, sharing=Sharing.FOLLOWS_INPUT)
    views = tq.PatternQuantizer(tq.SupportTable("views", (row,))).set_global(CONFIG)
    program = export(Fn(lambda _, x: torch.sigmoid(x).view(-1)), X)
    composed = tq.ComposableQuantizer([asked(with_a_tail), views])
    with pytest.raises(tq.QuantizerError, match="the row sigmoid returns a tensor in float") as caught:
        tq.prepare_pt2e(program, composed)
    assert "view shares" in str(caught.value.expected)


def test_a_model_that_was_copied_once_it_was_annotated_is_refused() -> None:
    """Its annotations are about another graph, and so is what is to be rewritten."""
    model = ONE.module()
    asked(as_relu).annotate(model)
    with pytest.raises(tq.AnnotationError, match="a node of another graph"):
        tq.prepare_pt2e(model, Listening())


def test_a_number_that_a_pattern_reads_twice_is_one_tensor() -> None:
    """It is one value before it becomes a tensor, and afterwards."""
    bias = Value(name="bias")
    tree = part(ops.ADD, part(ops.MUL, Value(), bias, does_the_work=True), bias)
    row = tq.SupportRow(OperatorPattern.tree(tree, name="scaled"), SPECS, constraints=(FLOAT32,))
    quantizer = tq.PatternQuantizer(tq.SupportTable("toy", (row,))).set_global(CONFIG)
    prepared = tq.prepare_pt2e(export(Fn(lambda _, x: x * 0.5 + 0.5), X), quantizer)
    assert {found.pattern for found in annotated(prepared).values()} == {"scaled"}
    prepared(X)
    torch.testing.assert_close(tq.convert_pt2e(prepared)(X), X * 0.5 + 0.5, atol=0.05, rtol=0)


def test_a_quantizer_around_another_one_has_its_claims_rewritten() -> None:
    """It hands on what it is asked, as quantizers of PT2E often do."""

    class Around(tq.Quantizer):
        inner = asked(as_relu)

        def annotate(self, model: GraphModule) -> GraphModule:
            return self.inner.annotate(model)

    prepared = tq.prepare_pt2e(PROGRAM, Around())
    assert len(calls(prepared, "relu")) == 2
    assert not calls(prepared, "sigmoid")


def test_who_replaces_an_annotation_of_the_table_keeps_the_operator_as_it_is() -> None:
    """A class that annotates in its own way decides for itself; its annotation is not written over."""
    fixed = tq.FixedQParamsQuantizationSpec("int8", 1 / 256, -128, -128, 127)

    class Fixing(tq.PatternQuantizer):
        def annotate(self, model: GraphModule) -> GraphModule:
            for node in super().annotate(model).graph.nodes:
                found = tq.annotation_of(node)
                if found is not None:
                    node.meta[ANNOTATION_KEY] = attrs.evolve(found, output_qspec=fixed)
            return model

    quantizer = Fixing(table(as_relu)).set_object_type(torch.ops.aten.sigmoid.default, CONFIG)
    prepared = tq.prepare_pt2e(PROGRAM, quantizer)
    assert not calls(prepared, "relu")
    assert {found.output_qspec for found in annotated(prepared).values()} == {fixed}


def test_a_second_look_is_at_nodes_whose_answer_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator that no rule asks for stays what it is, whatever others annotate."""
    model = export(Fn(lambda _, x: torch.relu(torch.sigmoid(x))), X).module()
    assert isinstance(model, GraphModule)
    matcher = asked().matcher(matching.GraphFacts.of(model.graph))
    assert matcher is not None
    matcher.settle()
    assert [reject.code for reasons in matcher.rejected.values() for reject in reasons] == ["not_asked"]
    considered: list[Any] = []
    monkeypatch.setattr(matcher, "consider", considered.append, raising=False)
    assert matcher.settle() == ()
    assert not considered


def test_a_node_that_is_claimed_later_is_no_longer_rejected() -> None:
    """A view has something to share once another quantizer has annotated what it reads."""
    model = export(Fn(lambda _, x: torch.sigmoid(x).view(-1)), X).module()
    assert isinstance(model, GraphModule)
    row = tq.SupportRow(OperatorPattern.of(ops.VIEW), SPECS, sharing=Sharing.FOLLOWS_INPUT)
    views = tq.PatternQuantizer(tq.SupportTable("views", (row,))).set_global(CONFIG)
    matcher = views.matcher(matching.GraphFacts.of(model.graph))
    assert matcher is not None
    assert matcher.settle() == ()
    (reasons,) = matcher.rejected.values()
    assert [reject.code for reject in reasons] == ["no_quantized_neighbour"]
    asked().annotate(model)
    assert len(matcher.settle()) == 1
    assert not matcher.rejected


def test_parameters_that_are_shared_in_a_circle_are_followed_once() -> None:
    """An operator that shares its input's parameters finds none, and the circle is the error."""

    class Circle(tq.Quantizer):
        def annotate(self, model: GraphModule) -> GraphModule:
            first, second = calls(model, "sigmoid")
            for node, other in ((first, second), (second, first)):
                tq.annotate_node(node, tq.QuantizationAnnotation({}, tq.SharedQuantizationSpec(other)))
            return model

    row = tq.SupportRow(OperatorPattern.of(ops.VIEW), SPECS, sharing=Sharing.FOLLOWS_INPUT)
    views = tq.PatternQuantizer(tq.SupportTable("views", (row,))).set_global(CONFIG)
    program = export(Fn(lambda _, x: torch.sigmoid(torch.sigmoid(x)).view(-1)), X)
    with pytest.raises(tq.SharingError, match="circle"):
        tq.prepare_pt2e(program, tq.ComposableQuantizer([Circle(), views]), strict=False)


def test_an_operator_shares_the_parameters_of_an_output_though_no_input_has_any() -> None:
    """A row may quantize what its operator returns alone."""
    sigmoid = tq.SupportRow(OperatorPattern.of(ops.SIGMOID), {"output_activation": (SPEC,)})
    view = tq.SupportRow(OperatorPattern.of(ops.VIEW), SPECS, sharing=Sharing.FOLLOWS_INPUT)
    quantizer = tq.PatternQuantizer(tq.SupportTable("toy", (sigmoid, view)))
    quantizer.set_object_type(torch.ops.aten.sigmoid.default, tq.QuantizationConfig(output_activation=INT8))
    quantizer.set_object_type(torch.ops.aten.view.default, CONFIG)
    prepared = tq.prepare_pt2e(export(Fn(lambda _, x: torch.sigmoid(x).view(-1)), X), quantizer)
    assert {found.pattern for found in annotated(prepared).values()} == {"sigmoid", "view"}


@pytest.mark.parametrize("role", ["input_activation", "output_activation"])
def test_an_operator_that_returns_integers_stays_as_it_is(role: str) -> None:
    """Whichever of its tensors the row would quantize."""
    argmax = ops.Operator("argmax", ("aten.argmax.default",), (ops.Operand("input_activation", 0, "self"),))
    row = tq.SupportRow(OperatorPattern.of(argmax), {role: (SPEC,)})
    quantizer = tq.PatternQuantizer(tq.SupportTable("toy", (row,))).set_global(
        tq.QuantizationConfig(**{role: INT8})
    )
    program = export(Fn(lambda _, x: torch.argmax(x)), X)
    (reasons,) = quantizer.rejections(program.module()).values()
    assert [reject.code for _, reject in reasons] == ["not_float"]


def test_arguments_that_the_operator_does_not_take_are_the_rewrites_fault() -> None:
    """They are noticed before anything is annotated."""

    def with_another_argument(_: GraphModule, match: Match) -> None:
        match.anchor.args = (*match.anchor.args, 3)

    with pytest.raises(tq.QuantizerError, match="The rewrite of the row sigmoid failed"):
        tq.prepare_pt2e(ONE, asked(with_another_argument))


def test_each_reader_may_get_a_node_of_its_own() -> None:
    """No single node stands for the output then."""

    def one_for_each_reader(model: GraphModule, match: Match) -> None:
        node = match.anchor
        for user in list(node.users):
            relu = call_before(model, node, torch.ops.aten.relu.default, node.args[0])
            user.replace_input_with(node, relu)
        model.graph.erase_node(node)

    program = export(Fn(lambda _, x: torch.tanh(s := torch.sigmoid(x)) + torch.cos(s)), X)
    prepared = tq.prepare_pt2e(program, asked(one_for_each_reader))
    assert [found.pattern for found in annotated(prepared).values()] == ["relu", "relu"]


def test_an_operator_of_a_match_that_is_not_profitable_is_asked_about_by_itself() -> None:
    """In a second look, if the match before it did not take it."""
    chain = tq.SupportRow(OperatorPattern.of(ops.ADD, ops.RELU), SPECS, profitable_alone=False)
    table = tq.SupportTable("toy", (chain, tq.SupportRow(OperatorPattern.of(ops.RELU), SPECS)))
    model = export(Fn(lambda _, x: torch.tanh(torch.relu(torch.tanh(x) + torch.cos(x)))), X).module()
    assert isinstance(model, GraphModule)
    quantizer = tq.PatternQuantizer(table).set_global(CONFIG)
    matcher = quantizer.matcher(matching.GraphFacts.of(model.graph))
    assert matcher is not None
    assert matcher.settle() == ()
    (claim,) = matcher.settle()
    assert claim.row.pattern.name == "relu"
