"""Sharing through the whole flow: what stands in the converted graph, and the numbers that come out."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn import functional

import torchquilt as tq
from strategies import (
    INT8,
    WEIGHT,
    ByFunction,
    Fn,
    RandomModel,
    calls,
    export,
    normal,
    one_call,
    prepare,
    quantize,
    random_models,
    sqnr,
    weights_of,
)
from torchquilt.pt2e.sharing_groups import edge_name, find_groups
from torchquilt.spec.annotation import ANNOTATION_KEY
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

Annotation = tq.QuantizationAnnotation
Shared = tq.SharedQuantizationSpec
Decide = Callable[[Node], tq.QuantizationAnnotation | None]

STATIC = get_symmetric_quantization_config(is_per_channel=True)
UNIT = tq.FixedQParamsQuantizationSpec("int8", 1 / 256, -128)  # of sigmoid and softmax
BOTH_SIGNS = tq.FixedQParamsQuantizationSpec("int8", 1 / 128, 0)  # of tanh


def by_operator(**rules: Callable[[Node], tq.QuantizationAnnotation]) -> ByFunction:
    """A quantizer with a function from node to annotation for each operator, by its short name."""

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        name = str(node.target).split(".")[1] if node.op == "call_function" else node.op
        return rules[name](node) if name in rules else None

    return ByFunction(decide)


def output(spec: Any) -> Callable[[Node], tq.QuantizationAnnotation]:
    """The output alone."""
    return lambda node: Annotation({}, spec)


def inputs(spec: Any) -> Callable[[Node], tq.QuantizationAnnotation]:
    """All inputs, each with the spec, and nothing else."""
    return lambda node: Annotation(dict.fromkeys(node.all_input_nodes, spec))


def sharing_its_input(node: Node) -> tq.QuantizationAnnotation:
    """The output has the parameters of the input."""
    (x,) = node.all_input_nodes
    return Annotation({x: Shared(x)}, Shared(x))


def joined(node: Node) -> tq.QuantizationAnnotation:
    """All inputs and the output with one scale, which is found for the first input."""
    first, *others = node.all_input_nodes
    return Annotation({first: INT8, **dict.fromkeys(others, Shared((first, node)))}, Shared((first, node)))


def qparams_of(node: Node) -> tuple[float, int]:
    """Scale and zero point with which a tensor has been dequantized."""
    assert "dequantize_per_tensor" in str(node.target)
    scale, zero_point = node.args[1:3]
    assert isinstance(scale, float)
    assert isinstance(zero_point, int)
    return scale, zero_point


def qparams_at(model: GraphModule, operator: str) -> list[tuple[float, int]]:
    """Parameters of the inputs of the only call of an operator, and then those of its output."""
    node = one_call(model, operator)
    behind = [step for user in node.users for step in user.users]
    return list(dict.fromkeys(map(qparams_of, (*node.all_input_nodes, *behind))))


def outputs(model: nn.Module, *arguments: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of a model, as a list."""
    with torch.no_grad():
        found = model(*arguments)
    return list(found) if isinstance(found, (tuple, list)) else [found]


# ----------------------------------------------------------------------------------------------------------
# One tensor, several edges
# ----------------------------------------------------------------------------------------------------------


def test_a_tensor_that_is_joined_with_itself_is_quantized_once() -> None:
    """cat([x, x]) reads one dequantized tensor twice, and its output has the same scale."""
    x = normal(2, 3)
    model = Fn(lambda _, x: torch.cat([x, x], 1))
    quantized = quantize(model, by_operator(cat=joined), x)
    assert len(calls(quantized, ".quantize_per_tensor")) == 2  # before the cat and behind it
    assert len(qparams_at(quantized, "cat")) == 1
    assert sqnr(model(x), quantized(x)) > 35


@pytest.mark.parametrize("name", ["minimum", "maximum", "add"])
def test_an_operator_of_a_tensor_with_itself_reads_one_quantized_tensor(name: str) -> None:
    """Both operands of minimum(x, x) come from one quantize, and what comes out is right."""
    function = getattr(torch, name)
    x = normal(3, 4)
    model = Fn(lambda _, x: function(x, x))
    quantized = quantize(model, by_operator(**{name: joined if name != "add" else inputs(INT8)}), x)
    left, right = one_call(quantized, f"aten.{name}").args[:2]
    assert left is right
    assert sqnr(model(x), quantized(x)) > 35


@pytest.mark.parametrize("name", ["eq", "gt"])
def test_a_comparison_of_a_tensor_with_itself_stays_exact(name: str) -> None:
    """Equal is true everywhere and greater nowhere, since both sides have one set of parameters."""
    x = normal(3, 4)
    quantized = quantize(Fn(lambda _, x: getattr(torch, name)(x, x)), by_operator(**{name: inputs(INT8)}), x)
    assert quantized(x).dtype is torch.bool
    assert bool((quantized(x) == (name == "eq")).all())


def test_declined_implicit_sharing_gives_a_user_parameters_of_its_own() -> None:
    """The one user requantizes; the other reads what was quantized behind the producer."""
    x = normal(3, 4)
    model = Fn(lambda _, x: (lambda y: (torch.abs(y), torch.sin(y)))(torch.neg(x)))

    def alone(node: Node) -> tq.QuantizationAnnotation:
        return Annotation(dict.fromkeys(node.all_input_nodes, INT8), allow_implicit_sharing=False)

    prepared = prepare(model, by_operator(neg=output(INT8), abs=inputs(INT8), sin=alone), x)
    points = [module.names for module in prepared.modules() if hasattr(module, "names")]
    assert points == [("neg", "neg → abs_1"), ("neg → sin",)]
    quantized = tq.convert_pt2e(tq.calibrate(prepared, [(x,)]))
    assert len(calls(quantized, ".quantize_per_tensor")) == 2
    for got, want in zip(quantized(x), model(x), strict=True):
        assert sqnr(want, got) > 30


# ----------------------------------------------------------------------------------------------------------
# Chains
# ----------------------------------------------------------------------------------------------------------


def test_an_early_tensor_may_have_the_parameters_of_a_late_one() -> None:
    """The scale is found from both tensors, though the one that has the spec is computed last."""
    x = normal(3, 4)
    model = Fn(lambda _, x: torch.exp(torch.neg(x)))

    def early(node: Node) -> tq.QuantizationAnnotation:
        (late,) = node.users
        return Annotation({}, Shared(late))

    quantized = quantize(model, by_operator(neg=early, exp=output(INT8)), x)
    lowest, highest = float((-x).min()), float((-x).exp().max())
    assert [qparams_of(node)[0] for node in calls(quantized, "dequantize")] == pytest.approx(
        [(highest - lowest) / 255] * 2
    )
    assert sqnr(model(x), quantized(x)) > 25


def grown(length: int, function: Callable[..., Any] = lambda _, x: torch.neg(x), **parts: Any) -> GraphModule:
    """An exported ``neg`` that is repeated: exporting a long chain takes longer than all the rest."""
    model = export(Fn(function, **parts), normal(2, 3)).module()
    node = one_call(model, "neg")
    last = node
    for _ in range(length - 1):
        with model.graph.inserting_after(last):
            copied = model.graph.node_copy(node, lambda _, last=last: last)
        last = copied
    node.replace_all_uses_with(last, delete_user_cb=lambda user: user.target is not node.target)
    model.recompile()
    return model


def test_a_chain_of_a_thousand_shared_specs_has_one_scale() -> None:
    """Each tensor shares with the one before it; the first one's spec reaches the last, through all steps."""

    def decide(node: Node) -> tq.QuantizationAnnotation:
        (x,) = node.all_input_nodes
        return Annotation({x: INT8 if x.op == "placeholder" else Shared(x)}, Shared((x, node)))

    x = normal(2, 3)
    prepared = tq.prepare_pt2e(grown(1000), by_operator(neg=decide), activation_observer="minmax")
    quantized = tq.convert_pt2e(tq.calibrate(prepared, [(x,)]))
    assert len({qparams_of(node) for node in calls(quantized, "dequantize")}) == 1
    assert len(calls(quantized, ".quantize_per_tensor")) == 1001
    assert sqnr(x, quantized(x)) > 30


def test_a_weight_may_be_computed_in_a_thousand_steps() -> None:
    """It is a constant however long the way from the stored tensor is, and is stored as integers."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, torch.neg(m.weight))

    x = normal(2, 3)
    model = grown(1000, run, weight=normal(4, 3))
    quantized = tq.convert_pt2e(tq.prepare_pt2e(model, weights_of("linear")))
    assert not calls(quantized, "neg")
    assert sqnr(model(x), quantized(x)) > 35


def doubled(qparams: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Twice the scale of the first source."""
    return qparams[0][0] * 2, qparams[0][1]


def test_a_chain_of_a_thousand_derived_specs_is_followed() -> None:
    """Derived parameters may be derived from again; each set is computed from the one before."""

    def decide(node: Node) -> tq.QuantizationAnnotation:
        (x,) = node.all_input_nodes
        if x.op == "placeholder":
            return Annotation({}, INT8)
        return Annotation({}, tq.DerivedQuantizationSpec((x,), lambda found: found[0], "int8"))

    prepared = tq.prepare_pt2e(grown(1000), by_operator(neg=decide), activation_observer="minmax")
    quantized = tq.convert_pt2e(tq.calibrate(prepared, [(normal(2, 3),)]))
    steps = calls(quantized, "dequantize")
    assert len(steps) == 1000
    assert len(set(map(qparams_of, steps))) == 1


def test_derived_parameters_may_be_derived_from_derived_ones() -> None:
    """The function is given what the source came to, in whichever order the tensors stand in the graph."""
    x = normal(3, 4)
    model = Fn(lambda _, x: torch.abs(torch.sin(torch.neg(x))))

    def from_neighbour(node: Node) -> tq.QuantizationAnnotation:
        (source,) = node.users
        return Annotation({}, tq.DerivedQuantizationSpec((source,), doubled, "int8"))

    quantizer = by_operator(neg=from_neighbour, sin=from_neighbour, abs=output(INT8))
    quantized = quantize(model, quantizer, x)
    first, second, last = (qparams_of(node)[0] for node in calls(quantized, "dequantize"))
    assert (first, second) == (pytest.approx(4 * last), pytest.approx(2 * last))


def test_a_circle_is_refused_before_anything_is_inserted() -> None:
    """Both prepare and explain say so, and the exported model is as it was."""
    exported = export(Fn(lambda _, x: torch.exp(torch.neg(x))), normal(2, 3))
    text = str(exported.graph)

    def with_user(node: Node) -> tq.QuantizationAnnotation:
        (user,) = node.users
        return Annotation({}, Shared(user))

    def with_input(node: Node) -> tq.QuantizationAnnotation:
        return Annotation({}, Shared(node.all_input_nodes[0]))

    quantizer = by_operator(neg=with_user, exp=with_input)
    for step in (tq.prepare_pt2e, tq.explain):
        with pytest.raises(tq.SharingError, match="circle") as caught:
            step(exported, quantizer)
        assert caught.value.node == "neg → exp → neg"
    assert str(exported.graph) == text


# ----------------------------------------------------------------------------------------------------------
# Known parameters inside of a group
# ----------------------------------------------------------------------------------------------------------

FIXED = {
    "sigmoid": (torch.sigmoid, UNIT),
    "softmax": (lambda x: torch.softmax(x, -1), UNIT),
    "tanh": (torch.tanh, BOTH_SIGNS),
}
fixed = pytest.mark.parametrize("name", FIXED)


@fixed
def test_a_join_with_a_tensor_of_known_parameters_requantizes_it(name: str) -> None:
    """Behind a conv and a sigmoid, say, a cat reads both with one scale; the sigmoid's own stays as known."""
    function, spec = FIXED[name]
    x = normal(2, 3, 6, 6)
    model = Fn(lambda m, x: torch.cat([m.conv(x), function(x)], 1), conv=nn.Conv2d(3, 4, 3, padding=1))
    quantizer = by_operator(conv2d=output(INT8), cat=joined, **{name: output(spec)})
    quantized = quantize(model, quantizer, x)
    assert one_call(quantized, f"aten.{name}").users.keys() == {calls(quantized, ".quantize_per_tensor")[1]}
    assert calls(quantized, ".quantize_per_tensor")[1].args[1:3] == (spec.scale, spec.zero_point)
    assert len(qparams_at(quantized, "cat")) == 1
    assert sqnr(model(x), quantized(x)) > 30


@fixed
def test_a_join_on_the_qparams_of_known_parameters_needs_no_data(name: str) -> None:
    """All who share with a node of fixed parameters have them, and nothing is observed."""
    function, spec = FIXED[name]

    def like_the_fixed(node: Node) -> tq.QuantizationAnnotation:
        other, known = node.all_input_nodes
        return Annotation({other: Shared(known), known: Shared(known)}, Shared(known))

    x = normal(2, 3, 8)
    model = Fn(lambda _, x: torch.cat([functional.hardtanh(x, 0.0, 0.9), function(x)], 1))
    prepared = prepare(model, by_operator(cat=like_the_fixed, **{name: output(spec)}), x)
    assert not [module for module in prepared.modules() if isinstance(module, tq.observers.Observer)]
    quantized = tq.convert_pt2e(prepared)
    assert qparams_at(quantized, "cat") == [(spec.scale, spec.zero_point)]
    torch.testing.assert_close(quantized(x), model(x), atol=spec.scale / 2 + 1e-6, rtol=0)


@fixed
def test_a_view_behind_known_parameters_passes_them_on(name: str) -> None:
    """XNNPACK's quantizer moves what another one has given fixed parameters, and leaves it there."""
    function, spec = FIXED[name]
    x = normal(2, 3, 8)
    model = Fn(lambda m, x: m.fc(function(x).view(6, 8)), fc=nn.Linear(8, 4))
    quantizer = tq.ComposableQuantizer(
        [by_operator(**{name: output(spec)}), XNNPACKQuantizer().set_global(STATIC)]
    )
    quantized = quantize(model, quantizer, x)
    assert qparams_at(quantized, "view") == [(spec.scale, spec.zero_point)]
    assert sqnr(model(x), quantized(x)) > 30


# ----------------------------------------------------------------------------------------------------------
# Derived parameters and groups
# ----------------------------------------------------------------------------------------------------------


def product(qparams: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The parameters of an integer bias: scale of the input times scales of the weight, no zero point."""
    (x, _), (weight, _) = qparams
    return x * weight, torch.zeros_like(weight, dtype=torch.int64)


def integer_linear(input_spec: Callable[[Node, Node], Any]) -> Callable[[Node], tq.QuantizationAnnotation]:
    """Input, weight and output as int8, and the bias as int32 with the parameters that follow from them."""

    def decide(node: Node) -> tq.QuantizationAnnotation:
        x, weight, bias = node.args
        assert isinstance(x, Node)
        bias_spec = tq.DerivedQuantizationSpec(
            ((x, node), (weight, node)),
            product,
            "int32",
            granularity="per_axis",
            ch_axis=0,
        )
        return Annotation({x: input_spec(x, node), weight: WEIGHT, bias: bias_spec}, INT8)

    return decide


def test_a_bias_is_derived_from_the_scale_that_its_input_shares() -> None:
    """The input's scale is that of a group, with the tensors before it; the bias has the one scale of all."""
    x = normal(4, 8)
    model = Fn(
        lambda m, x: m.last(torch.cat([m.first(x), x], 1)), first=nn.Linear(8, 8), last=nn.Linear(16, 4)
    )

    def shared_input(source: Node, user: Node) -> Any:
        return INT8 if source.op == "placeholder" else Shared(source)

    quantized = quantize(model, by_operator(cat=joined, linear=integer_linear(shared_input)), x)
    found = qparams_at(quantized, "cat")
    assert len(found) == 1
    for linear in calls(quantized, "aten.linear"):
        data, weight, bias = linear.args
        (weight_scale,) = (quantized.get_buffer(str(node.target)) for node in weight.args[1:2])
        bias_scale, bias_zero_point = (quantized.get_buffer(str(node.target)) for node in bias.args[1:3])
        torch.testing.assert_close(bias_scale, qparams_of(data)[0] * weight_scale)
        assert not bias_zero_point.any()
        assert qparams_of(data) == found[0]
    assert sqnr(model(x), quantized(x)) > 30


def test_a_weight_that_two_linears_share_gives_each_bias_a_scale_of_its_own() -> None:
    """One weight, two inputs with different scales: the bias that both read is stored once for each."""
    shared = nn.Linear(8, 8)
    model = Fn(lambda m, x: m.fc(torch.tanh(m.fc(x) * 4)), fc=shared)
    x = normal(4, 8)
    quantizer = by_operator(linear=integer_linear(lambda source, _: INT8))
    quantized = quantize(model, quantizer, x)
    state = quantized.state_dict()
    assert sum(tensor.dtype is torch.int8 for tensor in state.values()) == 1
    assert sum(tensor.dtype is torch.int32 for tensor in state.values()) == 2
    assert sqnr(model(x), quantized(x)) > 30


# ----------------------------------------------------------------------------------------------------------
# The order of nodes does not matter
# ----------------------------------------------------------------------------------------------------------


def reorder(model: GraphModule, chance: random.Random) -> None:
    """Put the nodes between inputs and output into any order in which each comes after what it reads."""
    (last,) = (node for node in model.graph.nodes if node.op == "output")
    waiting = {
        node: sum(source.op != "placeholder" for source in node.all_input_nodes)
        for node in model.graph.nodes
        if node.op not in ("placeholder", "output")
    }
    ready = [node for node, count in waiting.items() if not count]
    while ready:
        node = ready.pop(chance.randrange(len(ready)))
        last.prepend(node)
        for user in node.users:
            if user is not last:
                waiting[user] -= 1
                if not waiting[user]:
                    ready.append(user)
    model.graph.lint()
    model.recompile()


def annotate_at_random(graph: torch.fx.Graph, seed: int) -> None:
    """Give each output and each edge a spec, or let it share with or be derived from any other edge.

    What a node gets depends on its name alone, so it is the same wherever the node stands.
    """
    nodes = sorted((node for node in graph.nodes if node.op == "call_function"), key=lambda node: node.name)
    edges: list[Any] = [*nodes, *((source, node) for node in nodes for source in node.all_input_nodes)]
    for node in nodes:
        chance = random.Random(f"{seed} {node.name}")

        def spec(edge: Any, chance: random.Random = chance) -> Any:
            other = chance.choice(edges)
            kind = chance.choice(["int8", "int8", "uint8", "fixed", "shared", "derived"])
            if kind == "shared" and other != edge:
                return Shared(other)
            if kind == "derived" and other != edge:
                return tq.DerivedQuantizationSpec((other,), doubled, "int8")
            return UNIT if kind == "fixed" else tq.QuantizationSpec(kind if "int" in kind else "int8")

        asked = {source: spec((source, node)) for source in node.all_input_nodes}
        implicit = chance.random() < 0.8
        node.meta[ANNOTATION_KEY] = Annotation(asked, spec(node), implicit)


def groups_of(model: GraphModule) -> Any:
    """The groups by names with their specs, or the edges and nodes that stand in a circle."""
    try:
        found = find_groups(model.graph)
    except tq.SharingError as error:
        return error.problem
    return {(str(group.spec), frozenset(map(edge_name, group.members))) for group in found}


@settings(max_examples=60)
@given(random_models(), st.randoms(use_true_random=False), st.integers(0, 2**16))
def test_groups_are_the_same_in_any_order_of_nodes(
    model: RandomModel, chance: random.Random, seed: int
) -> None:
    """However independent nodes stand one after the other, the groups are the same, and so are refusals."""
    exported = export(model, model.example).module()
    annotate_at_random(exported.graph, seed)
    before = groups_of(exported)
    reorder(exported, chance)
    assert groups_of(exported) == before


@pytest.mark.filterwarnings("ignore:Something was asked for in this model")
@settings(max_examples=20)
@given(random_models(), st.randoms(use_true_random=False))
def test_the_order_of_nodes_does_not_change_a_number(model: RandomModel, chance: random.Random) -> None:
    """Two orders of one graph are quantized alike by XNNPACK's quantizer, and return the same bits."""
    x = model.example
    quantizer = XNNPACKQuantizer().set_global(STATIC)
    modules = [export(model, x).module() for _ in range(2)]
    reorder(modules[1], chance)
    results = []
    for module in modules:
        prepared = tq.prepare_pt2e(module, quantizer, activation_observer="minmax", strict=False)
        results.append(outputs(tq.convert_pt2e(tq.calibrate(prepared, [(x,)])), x))
    assert all(torch.equal(left, right) for left, right in zip(*results, strict=True))
