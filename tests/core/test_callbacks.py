"""The calls that a quantizer gets: each once, in the documented order, and what it may do in each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

import torchquilt as tq
from strategies import (
    INT8,
    Fn,
    Nothing,
    Transforming,
    annotated,
    calls,
    export,
    normal,
    outputs_of,
    prepare,
    sqnr,
)
from torchquilt.observers import HistogramObserver, MinMaxObserver
from torchquilt.pt2e.observer_points import (
    ConstantPoint,
    DynamicPoint,
    FixedPoint,
    ObservedPoint,
    QuantizationPoint,
)
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config
from unharmed import unharmed

X = normal(3, 6)
STATIC = get_symmetric_quantization_config()


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    """Two linears with a relu and a cat behind; no test may change it."""
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.layers[0](x))
        return torch.cat([self.layers[1](hidden), hidden])

    return export(Fn(forward, layers=layers), X)


Points = dict[Any, Any]


class Calling(XNNPACKQuantizer):
    """XNNPACK's quantizer, with a callback of a test's own."""

    def __init__(self, callback: Callable[[GraphModule, Points], Any]) -> None:
        super().__init__()
        self.callback = callback
        self.set_global(STATIC)

    def prepare_obs_or_fq_callback(self, model: GraphModule, edge_or_node_to_obs_or_fq: Points) -> None:
        """Hand it on."""
        self.callback(model, edge_or_node_to_obs_or_fq)


# ----------------------------------------------------------------------------------------------------------
# Who is called, when, with what
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plain", "composed", "nested", "duck"])
def test_every_call_of_the_protocol_is_made(form: str) -> None:
    """transform, annotate, validate and the callback reach a quantizer once, in this order, in every form."""
    heard: list[str] = []

    class Listener:
        name = "listener"

        def transform_for_annotation(self, model: GraphModule) -> GraphModule:
            heard.append("transform")
            return model

        def annotate(self, model: GraphModule) -> GraphModule:
            heard.append("annotate")
            return outputs_of("linear").annotate(model)

        def validate(self, model: GraphModule) -> None:
            heard.append(f"validate {len(annotated(model))}")

        def quantization_capabilities(self) -> tq.Capabilities:
            heard.append("capabilities")
            return tq.Capabilities()

        def prepare_obs_or_fq_callback(self, model: GraphModule, points: Points) -> None:
            heard.append(f"callback {len(points)}")

    class Derived(Listener, tq.Quantizer):
        pass

    listener = Listener() if form == "duck" else Derived()
    quantizer: Any = {
        "plain": listener,
        "duck": listener,
        "composed": tq.ComposableQuantizer([Nothing(), listener]),
        "nested": tq.ComposableQuantizer([tq.ComposableQuantizer([listener]), Nothing()]),
    }[form]
    prepare(nn.Linear(6, 6), quantizer, X)
    changes = [call for call in heard if call != "capabilities"]  # a question, to be asked at any time
    assert changes == ["transform", "annotate", "validate 1", "callback 1"]
    quantizer.quantization_capabilities()
    assert heard[-1] == "capabilities"


@pytest.mark.parametrize("nested", [False, True])
def test_each_call_goes_through_all_quantizers_before_the_next_one(
    nested: bool, program: ExportedProgram
) -> None:
    """All transform before anybody annotates, all annotate before anybody validates, in their order."""
    heard: list[str] = []

    class Listener(tq.Quantizer):
        def __init__(self, name: str) -> None:
            self.label = name

        def transform_for_annotation(self, model: GraphModule) -> GraphModule:
            heard.append(f"transform {self.label}")
            return model

        def annotate(self, model: GraphModule) -> GraphModule:
            heard.append(f"annotate {self.label}")
            return model

        def validate(self, model: GraphModule) -> None:
            heard.append(f"validate {self.label}")

        def prepare_obs_or_fq_callback(self, model: GraphModule, points: Points) -> None:
            heard.append(f"callback {self.label}")

    one, two, three = map(Listener, "123")
    inner: list[object] = [tq.ComposableQuantizer([two, three])] if nested else [two, three]
    tq.prepare_pt2e(program, tq.ComposableQuantizer([one, *inner]))
    assert heard == [
        f"{call} {label}" for call in ("transform", "annotate", "validate", "callback") for label in "123"
    ]


def test_an_object_with_annotate_alone_is_asked_for_nothing_else(program: ExportedProgram) -> None:
    """The other calls do what the base class does; annotate may return the model or nothing."""

    class Minimal:
        def annotate(self, model: GraphModule) -> None:
            tq.annotate_node(calls(model, "relu")[0], tq.QuantizationAnnotation({}, INT8))

    prepared = tq.prepare_pt2e(program, Minimal())
    assert [found.quantizer for found in annotated(prepared).values()] == ["Minimal"]


def test_explain_asks_the_same_without_the_callback(program: ExportedProgram) -> None:
    """Explain stops before observers are made, so there are none to be shown."""
    asked: list[object] = []
    tq.explain(program, Calling(lambda *args: asked.append(args)))
    assert asked == []


# ----------------------------------------------------------------------------------------------------------
# transform_for_annotation
# ----------------------------------------------------------------------------------------------------------


def test_a_transform_hands_on_the_model_that_it_returns() -> None:
    """A quantizer may return another graph module; the next one gets that."""
    seen: list[GraphModule] = []

    class Copies(tq.Quantizer):
        def transform_for_annotation(self, model: GraphModule) -> GraphModule:
            seen.append(model)
            return GraphModule(model, model.graph)

        def annotate(self, model: GraphModule) -> GraphModule:
            seen.append(model)
            return model

    prepare(nn.Linear(6, 6), tq.ComposableQuantizer([Copies(), Copies()]), X)
    first, second, annotates, again = seen
    assert first is not second
    assert second is not annotates
    assert annotates is again


def test_a_transform_may_rewrite_the_copy(program: ExportedProgram) -> None:
    """Its changes are in the prepared model and not in the exported one; inputs are checked as before."""

    def twice(model: GraphModule) -> GraphModule:
        (relu,) = calls(model, "relu")
        relu.target = torch.ops.aten.tanh.default
        return GraphModule(model, model.graph)

    with unharmed(program):
        prepared = tq.prepare_pt2e(program, Transforming(twice))
    assert not calls(prepared, "relu")
    assert calls(prepared, "tanh")
    with pytest.raises(ValueError, match="input tree spec"):
        prepared(X, X)


OTHERS: dict[str, Callable[[GraphModule], Any]] = {
    "nothing": lambda model: None,
    "a module": lambda model: nn.Linear(6, 6),
    "a program": lambda model: export(nn.Linear(6, 6), X),
    "a model with other inputs": lambda model: export(Fn(lambda _, a, b: a + b), X, X).module(),
}


@pytest.mark.parametrize("returned", OTHERS)
@pytest.mark.parametrize("composed", [False, True])
def test_a_transform_returns_a_model_that_is_called_like_the_one_that_it_got(
    returned: str, composed: bool, program: ExportedProgram
) -> None:
    """Anything else is an error that names the quantizer."""
    forgetful = Transforming(OTHERS[returned])
    quantizer = tq.ComposableQuantizer([Nothing(), forgetful]) if composed else forgetful
    with unharmed(program), pytest.raises(tq.QuantizerError) as caught:
        tq.prepare_pt2e(program, quantizer)
    assert caught.value.quantizer == "Transforming"
    assert "return" in str(caught.value.remedy)


# ----------------------------------------------------------------------------------------------------------
# annotate and validate
# ----------------------------------------------------------------------------------------------------------


class Annotating(tq.Quantizer):
    """Does what a test wants when it is to annotate."""

    def __init__(self, deed: Callable[[GraphModule], Any]) -> None:
        self.deed = deed

    def annotate(self, model: GraphModule) -> Any:
        """Hand it on."""
        return self.deed(model)


def test_annotate_returns_the_model_or_nothing(program: ExportedProgram) -> None:
    """Another model would carry annotations that are never read: an error with the quantizer."""
    for returned in (lambda model: model, lambda model: None):
        tq.prepare_pt2e(program, Annotating(returned))
    with unharmed(program), pytest.raises(tq.QuantizerError, match="another model") as caught:
        tq.prepare_pt2e(program, Annotating(copy.deepcopy))
    assert caught.value.quantizer == "Annotating"


def _erase(model: GraphModule) -> None:
    (relu,) = calls(model, "relu")
    relu.replace_all_uses_with(relu.args[0])
    model.graph.erase_node(relu)


def _retarget(model: GraphModule) -> None:
    (relu,) = calls(model, "relu")
    relu.target = torch.ops.aten.tanh.default


def _rewire(model: GraphModule) -> None:
    relu, cat = calls(model, "relu")[0], calls(model, "cat")[0]
    cat.replace_input_with(relu, relu.args[0])


def _add(model: GraphModule) -> None:
    (relu,) = calls(model, "relu")
    with model.graph.inserting_after(relu):
        model.graph.call_function(torch.ops.aten.neg.default, (relu,))


@pytest.mark.parametrize(
    ("deed", "node"), [(_erase, "relu"), (_retarget, "relu"), (_rewire, "cat"), (_add, "neg_default")]
)
def test_annotate_does_not_change_the_graph(deed: Any, node: str, program: ExportedProgram) -> None:
    """Others have decided about the graph as it was; the error names the quantizer and a changed node."""
    composed = tq.ComposableQuantizer([XNNPACKQuantizer().set_global(STATIC), Annotating(deed)])
    with unharmed(program), pytest.raises(tq.QuantizerError, match="changed the graph") as caught:
        tq.prepare_pt2e(program, composed)
    assert (caught.value.node, caught.value.quantizer) == (node, "Annotating")
    assert "transform_for_annotation" in str(caught.value.remedy)


class TooHot(Exception):
    """An error of a backend's own."""


@pytest.mark.parametrize(
    "error", [tq.AnnotationError("too many"), TooHot("too many")], ids=["ours", "its own"]
)
@pytest.mark.parametrize("composed", [False, True])
def test_what_validate_raises_reaches_the_user(
    error: Exception, composed: bool, program: ExportedProgram
) -> None:
    """The very error, whatever its type; validate has seen the annotations of all."""
    seen: list[int] = []

    class Strict(tq.Quantizer):
        def annotate(self, model: GraphModule) -> GraphModule:
            return model

        def validate(self, model: GraphModule) -> None:
            seen.append(len(annotated(model)))
            raise error

    others = [XNNPACKQuantizer().set_global(STATIC)] if composed else []
    with unharmed(program), pytest.raises(type(error)) as caught:
        tq.prepare_pt2e(program, tq.ComposableQuantizer([*others, Strict()]))
    assert caught.value is error
    assert seen == [4 if composed else 0]
    if isinstance(error, tq.TorchquiltError):
        assert error.quantizer == "Strict"


# ----------------------------------------------------------------------------------------------------------
# prepare_obs_or_fq_callback
# ----------------------------------------------------------------------------------------------------------


def test_a_callback_sees_every_place_and_one_module_for_each_group(program: ExportedProgram) -> None:
    """Edges and outputs of the annotated model, before anything is put in; who shares has the same module."""
    seen: Points = {}

    def look(model: GraphModule, points: Points) -> None:
        assert not any(node.op == "call_module" and node.users for node in model.graph.nodes)
        assert all(
            (edge[1] if isinstance(edge, tuple) else edge) in set(model.graph.nodes) for edge in points
        )
        seen.update(points)

    prepared = tq.prepare_pt2e(program, Calling(look))
    groups: dict[int, set[str]] = {}
    for edge, point in seen.items():
        groups.setdefault(id(point), set()).add(str(edge))
    assert sorted(map(sorted, groups.values())) == [
        ["(args_0, linear)"],
        ["(layers_0_weight, linear)"],
        ["(layers_1_weight, linear_1)"],
        ["(linear_1, cat)", "(relu, cat)", "(relu, linear_1)", "cat", "linear_1", "relu"],
    ]
    assert {id(point) for point in points_of(prepared)} == set(groups)


def points_of(model: GraphModule) -> list[QuantizationPoint[Any]]:
    """The points of a prepared model."""
    return [module for module in model.modules() if isinstance(module, QuantizationPoint)]


def kinds_of(points: Points) -> dict[str, type]:
    """Place → kind of point."""
    return {str(edge): type(point) for edge, point in points.items()}


def test_the_point_says_how_its_parameters_are_found(program: ExportedProgram) -> None:
    """Weights are constants, activations are observed, dynamic ones are neither."""
    static, dynamic = {}, {}
    tq.prepare_pt2e(program, Calling(lambda _, points: static.update(kinds_of(points))))
    quantizer = Calling(lambda _, points: dynamic.update(kinds_of(points)))
    tq.prepare_pt2e(program, quantizer.set_global(get_symmetric_quantization_config(is_dynamic=True)))
    assert (static["(args_0, linear)"], static["(layers_0_weight, linear)"]) == (ObservedPoint, ConstantPoint)
    assert (dynamic["(args_0, linear)"], dynamic["(layers_0_weight, linear)"]) == (
        DynamicPoint,
        ConstantPoint,
    )


def test_a_callback_may_replace_the_observer_of_a_point(program: ExportedProgram) -> None:
    """The observer that a callback sets is used."""

    def replace(_: GraphModule, points: Points) -> None:
        for point in points.values():
            if isinstance(point, ObservedPoint):
                point.observer = HistogramObserver(point.spec)

    prepared = tq.prepare_pt2e(program, Calling(replace), activation_observer="minmax")
    assert {type(p.observer) for p in points_of(prepared) if isinstance(p, ObservedPoint)} == {
        HistogramObserver
    }


def test_a_callback_may_replace_a_point_at_all_its_places(program: ExportedProgram) -> None:
    """By one that is observed in another way, or by one with known parameters, which needs no data."""
    known = tq.FixedQParamsQuantizationSpec("int8", 1 / 16, 0)

    def replace(_: GraphModule, points: Points) -> None:
        new: dict[int, QuantizationPoint[Any]] = {}
        for edge, point in points.items():
            if isinstance(point, ObservedPoint):
                points[edge] = new.setdefault(id(point), FixedPoint(known, point.names))
            else:
                observed = ObservedPoint(point.spec, MinMaxObserver(point.spec), point.names)
                points[edge] = new.setdefault(id(point), observed)

    prepared = tq.prepare_pt2e(program, Calling(replace))
    quantized = tq.convert_pt2e(tq.calibrate(prepared, [X]))
    assert {node.args[1:3] for node in calls(quantized, ".quantize_per_tensor")} == {(1 / 16, 0)}
    assert sqnr(program.module()(X), quantized(X)) > 20


def at_first(points: Points, kind: type) -> Any:
    """The first edge with a point of a kind."""
    return next(edge for edge, point in points.items() if isinstance(point, kind))


def _remove(points: Points) -> None:
    del points[at_first(points, ObservedPoint)]


def _add_a_place(points: Points) -> None:
    some = at_first(points, ObservedPoint)
    points[some[0]] = points[some]


def _split(points: Points) -> None:
    cat = next(edge for edge in points if isinstance(edge, Node) and edge.name == "cat")
    points[cat] = copy.deepcopy(points[cat])


def _join(points: Points) -> None:
    point = points[at_first(points, ObservedPoint)]
    points.update({edge: point for edge in points if isinstance(points[edge], ObservedPoint)})


def _no_point(points: Points) -> None:
    points.update(dict.fromkeys(points, nn.Identity()))


def _no_observer(points: Points) -> None:
    points[at_first(points, ObservedPoint)].observer = nn.Identity()


def _other_numbers(points: Points) -> None:
    edge, spec = at_first(points, ObservedPoint), tq.QuantizationSpec("uint8")
    points[edge] = ObservedPoint(spec, MinMaxObserver(spec), points[edge].names)


def _observer_of_other_numbers(points: Points) -> None:
    points[at_first(points, ObservedPoint)].observer = MinMaxObserver(tq.QuantizationSpec("int8", -8, 7))


def _not_constant(points: Points) -> None:
    edge = at_first(points, ObservedPoint)
    points[edge] = ConstantPoint(points[edge].spec, points[edge].names)


@pytest.mark.parametrize(
    ("deed", "said"),
    [
        (_remove, "removed an edge or node"),
        (_add_a_place, "added an edge or node"),
        (_split, "share parameters"),
        (_join, "share parameters"),
        (_no_point, "not an observer point"),
        (_no_observer, "not an observer"),
        (_other_numbers, "changed the dtype and the quant_min"),
        (_observer_of_other_numbers, "changed the quant_min and the quant_max"),
        (_not_constant, "cannot stand there"),
    ],
)
def test_a_callback_changes_nothing_that_was_decided(deed: Any, said: str, program: ExportedProgram) -> None:
    """Dtypes and sharing are settled before a callback runs; the error names edge and quantizer."""
    with unharmed(program), pytest.raises(tq.QuantizerError, match=said) as caught:
        tq.prepare_pt2e(program, Calling(lambda _, points: deed(points)))
    assert caught.value.quantizer == "Calling"
    assert caught.value.node
    assert "observer" in str(caught.value.remedy)


STEPS = ["transform_for_annotation", "annotate", "prepare_obs_or_fq_callback"]


@pytest.mark.parametrize("step", STEPS)
def test_a_quantizer_that_fails_is_named_with_the_step(step: str, program: ExportedProgram) -> None:
    """However deep it is in a composition. What it raised is the cause; the exported model is as before."""

    class Broken(tq.Quantizer):
        def annotate(self, model: GraphModule) -> GraphModule:
            return model

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("a mistake")

    broken = Broken()
    setattr(broken, step, fail)
    composed = tq.ComposableQuantizer([tq.ComposableQuantizer([Nothing(), broken]), Nothing()])
    with unharmed(program), pytest.raises(tq.QuantizerError, match=f"Broken failed in {step}") as caught:
        tq.prepare_pt2e(program, composed)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.quantizer == "Broken"


def test_annotate_has_to_be_written(program: ExportedProgram) -> None:
    """A derived class without it says so, with its name."""

    class Empty(tq.Quantizer):
        pass

    with pytest.raises(tq.QuantizerError, match="Empty failed in annotate") as caught:
        tq.prepare_pt2e(program, Empty())
    assert "does not say what it annotates" in str(caught.value.got)
