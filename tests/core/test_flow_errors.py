"""Refusals of the flow: an error of ours, with node, quantizer and remedy; the model is unharmed."""

from __future__ import annotations

import importlib
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
    WEIGHT,
    ByFunction,
    Fn,
    Nothing,
    calls,
    export,
    normal,
    outputs_of,
    prepare,
    quantize,
    weights_of,
)
from torchquilt.plugins import registry
from torchquilt.spec.annotation import ANNOTATION_KEY
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config
from unharmed import unharmed

X = normal(3, 6)
Annotation = tq.QuantizationAnnotation
torchao = importlib.import_module("torchao.quantization.pt2e.quantizer")
executorch = importlib.import_module("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")


def xnnpack(**asked: bool) -> XNNPACKQuantizer:
    """XNNPACK everywhere."""
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(**asked))


def two_linears() -> nn.Module:
    """Two linears with a relu between."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).eval()


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    """They, exported; no test may change them."""
    return export(two_linears(), X)


@pytest.fixture
def prepared(program: ExportedProgram) -> GraphModule:
    """They, prepared."""
    return tq.prepare_pt2e(program, xnnpack())


# ----------------------------------------------------------------------------------------------------------
# Models that are not taken
# ----------------------------------------------------------------------------------------------------------

STEPS: dict[str, Callable[[Any], object]] = {
    "prepare": lambda model: tq.prepare_pt2e(model, xnnpack()),
    "explain": lambda model: tq.explain(model, xnnpack()),
    "calibrate": lambda model: tq.calibrate(model, [X]),
    "convert": tq.convert_pt2e,
}
NOT_EXPORTED: dict[str, Callable[[], Any]] = {
    "module": two_linears,
    "symbolic_trace": lambda: torch.fx.symbolic_trace(two_linears()),
    "script": lambda: torch.jit.script(two_linears()),
    "trace": lambda: torch.jit.trace(two_linears(), X),
    "compiled": lambda: torch.compile(two_linears()),
    "state dict": lambda: two_linears().state_dict(),
    "None": lambda: None,
    "number": lambda: 3,
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("kind", NOT_EXPORTED)
@pytest.mark.parametrize("step", STEPS)
def test_what_was_not_exported_is_refused(kind: str, step: str) -> None:
    """Anything that torch.export did not make is an error that says what has to come before."""
    with pytest.raises(tq.ModelError) as caught:
        STEPS[step](NOT_EXPORTED[kind]())
    before = "torch.export" if step in ("prepare", "explain") else "prepare_pt2e"
    assert before in str(caught.value.remedy)


def test_the_graph_module_inside_of_a_program_is_refused(program: ExportedProgram) -> None:
    """exported.graph_module takes its weights as inputs: nothing in it is constant, so .module() is meant."""
    with unharmed(program), pytest.raises(tq.ModelError) as caught:
        tq.prepare_pt2e(program.graph_module, xnnpack())
    assert ".module()" in str(caught.value.remedy)


@pytest.mark.parametrize("step", ["prepare", "explain"])
def test_a_prepared_model_is_not_prepared_again(step: str, prepared: GraphModule) -> None:
    """It is refused, and is still good to be calibrated and converted."""
    with unharmed(prepared), pytest.raises(tq.ModelError, match="prepared already"):
        STEPS[step](prepared)
    tq.convert_pt2e(tq.calibrate(prepared, [(X,)]))


@pytest.mark.parametrize("step", STEPS)
def test_a_converted_model_is_the_end(step: str, prepared: GraphModule) -> None:
    """It is not prepared, calibrated or converted again, and runs as before."""
    quantized = tq.convert_pt2e(tq.calibrate(prepared, [X]))
    expected = quantized(X)
    with unharmed(quantized), pytest.raises(tq.ModelError) as caught:
        STEPS[step](quantized)
    assert "converted" in f"{caught.value.problem} {caught.value.got}"
    assert "prepare" in str(caught.value.remedy)
    assert torch.equal(quantized(X), expected)


@pytest.mark.parametrize("step", ["calibrate", "convert"])
@pytest.mark.parametrize("form", ["program", "module"])
def test_a_float_model_is_prepared_first(step: str, form: str, program: ExportedProgram) -> None:
    """The error of calibrate and convert says so."""
    model = program if form == "program" else program.module()
    with unharmed(model), pytest.raises(tq.ModelError) as caught:
        STEPS[step](model)
    assert "prepare_pt2e" in str(caught.value.remedy)


def test_a_loaded_quantized_program_is_not_prepared_again() -> None:
    """A program with quantize and dequantize operators is refused, wherever it comes from."""
    quantized = tq.convert_pt2e(prepare(nn.Linear(6, 5), xnnpack(is_dynamic=True), X))
    exported = torch.export.export(quantized, (X,)).module()
    exported.meta.clear()  # as it is after a file
    with unharmed(exported), pytest.raises(tq.ModelError, match="quantized already"):
        tq.prepare_pt2e(exported, xnnpack())


def test_converting_without_calibration_names_what_was_not_seen(prepared: GraphModule) -> None:
    """The error says which tensors and what to do; the prepared model is as it was, and can be calibrated."""
    with unharmed(prepared), pytest.raises(tq.CalibrationError, match="saw no data") as caught:
        tq.convert_pt2e(prepared)
    assert "→ linear" in str(caught.value.node)
    assert "calibrate" in str(caught.value.remedy)
    tq.convert_pt2e(tq.calibrate(prepared, [X]))


# ----------------------------------------------------------------------------------------------------------
# Models in training mode
# ----------------------------------------------------------------------------------------------------------

IMAGE = normal(2, 3, 8, 8)
SEQUENCE = normal(4, 2, 6)


def attend(_: Any, x: torch.Tensor) -> torch.Tensor:
    """Attention that drops scores."""
    return nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5)


TRAINING: dict[str, tuple[nn.Module, torch.Tensor]] = {
    "dropout": (nn.Dropout(0.5), X),
    "dropout_": (nn.Dropout(0.5, inplace=True), X),
    "feature_dropout": (nn.Dropout2d(0.5), IMAGE),
    "feature_dropout_": (nn.Dropout1d(0.5, inplace=True), normal(2, 3, 8)),
    "alpha_dropout": (nn.AlphaDropout(0.5), X),
    "feature_alpha_dropout": (nn.FeatureAlphaDropout(0.5), IMAGE),
    "rrelu": (nn.RReLU(), X),
    "batch_norm": (nn.BatchNorm2d(3), IMAGE),
    "instance_norm": (nn.InstanceNorm2d(3, track_running_stats=True), IMAGE),
    "lstm": (nn.LSTM(6, 6, 2, dropout=0.5), SEQUENCE),
    "gru": (nn.GRU(6, 6, 2, dropout=0.5), SEQUENCE),
    "rnn_tanh": (nn.RNN(6, 6, 2, dropout=0.5), SEQUENCE),
    "scaled_dot_product_attention": (Fn(attend), IMAGE),
}


@pytest.mark.parametrize("node", TRAINING)
def test_a_model_in_training_mode_is_refused(node: str) -> None:
    """An operator that draws random numbers or moves statistics is named, in place or not."""
    model, x = TRAINING[node]
    with torch.no_grad():
        exported = torch.export.export(nn.Sequential(model).train(), (x,))
    with unharmed(exported), pytest.raises(tq.ModelError, match="training mode") as caught:
        tq.prepare_pt2e(exported, Nothing())
    assert caught.value.node == node
    assert "eval()" in str(caught.value.remedy)


@pytest.mark.parametrize("node", [name for name in TRAINING if name != "scaled_dot_product_attention"])
def test_the_same_in_evaluation_mode_is_taken(node: str) -> None:
    """Its operators are there as well, but say that they do not train."""
    model, x = TRAINING[node]
    tq.prepare_pt2e(export(nn.Sequential(model), x), Nothing())


@pytest.mark.parametrize(
    "model",
    [nn.Dropout(0.0), nn.BatchNorm1d(6, track_running_stats=False), nn.GRU(6, 6, 2)],
    ids=["p=0", "no statistics", "no dropout"],
)
def test_what_trains_as_it_evaluates_is_taken(model: nn.Module) -> None:
    """A flag without a consequence is no reason to refuse."""
    tq.prepare_pt2e(torch.export.export(nn.Sequential(model).train(), (X,)), Nothing())


# ----------------------------------------------------------------------------------------------------------
# What is no quantizer
# ----------------------------------------------------------------------------------------------------------


class Torchao(torchao.Quantizer):  # type: ignore[misc, name-defined]
    """A quantizer that was written for torchao."""

    def annotate(self, model: GraphModule) -> GraphModule:
        """Nothing of it is run."""
        raise AssertionError

    def validate(self, model: GraphModule) -> None:
        """Nor of this."""
        raise AssertionError


@pytest.mark.parametrize(
    "subject",
    [XNNPACKQuantizer, 3, None, nn.Linear(2, 2), lambda model: model, get_symmetric_quantization_config()],
    ids=lambda subject: type(subject).__name__,
)
def test_what_is_no_quantizer_is_refused(subject: Any, program: ExportedProgram) -> None:
    """A class instead of an instance, a module, a function, a config: alone or in a composition."""
    with unharmed(program), pytest.raises(tq.IntentError, match="not a quantizer"):
        tq.prepare_pt2e(program, subject)
    with pytest.raises(tq.IntentError, match="not a quantizer"):
        tq.ComposableQuantizer([xnnpack(), subject])


@pytest.mark.parametrize(
    "make",
    [Torchao, executorch.XNNPACKQuantizer, lambda: torchao.ComposableQuantizer([])],
    ids=["derived", "executorch", "composable"],
)
def test_a_quantizer_of_another_library_is_refused_without_the_bridge(
    make: Callable[[], object], program: ExportedProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told by its base class; the error names the library, and the plugin that takes its quantizers."""
    monkeypatch.setenv(registry.BLOCK_VARIABLE, "torchao")
    with unharmed(program), pytest.raises(tq.IntentError, match="torchao") as caught:
        tq.prepare_pt2e(program, make())
    assert caught.value.remedy == "pip install torchquilt-torchao"
    with pytest.raises(tq.IntentError, match="torchao"):
        tq.ComposableQuantizer([xnnpack(), make()])


# ----------------------------------------------------------------------------------------------------------
# Annotations that do not hold
# ----------------------------------------------------------------------------------------------------------

OTHER = export(nn.Linear(6, 6), X).module()


def linear(model: GraphModule, index: int = 0) -> Node:
    """One of the linears."""
    return calls(model, "aten.linear")[index]


class Writing(tq.Quantizer):
    """Writes one annotation, past the checks of annotate_node."""

    def __init__(self, write: Callable[[GraphModule], tuple[Node, Any]]) -> None:
        self.write = write

    def annotate(self, model: GraphModule) -> GraphModule:
        """Write it."""
        node, annotation = self.write(model)
        node.meta[ANNOTATION_KEY] = annotation
        return model


def _gone(model: GraphModule) -> Node:
    """A node that was in the graph."""
    with model.graph.inserting_before(linear(model)):
        node = model.graph.call_function(torch.ops.aten.neg.default, (linear(model).args[0],))
    model.graph.erase_node(node)
    return node


def _derived(*sources: Any) -> tq.DerivedQuantizationSpec:
    return tq.DerivedQuantizationSpec(sources, lambda pairs: pairs[0], "int32")


# What is annotated: node, annotation → what the error says, of which type.
WRONG: dict[str, tuple[Callable[[GraphModule], tuple[Node, Any]], type[tq.TorchquiltError], str]] = {
    "an input that is gone": (
        lambda m: (linear(m), Annotation({_gone(m): INT8})),
        tq.AnnotationError,
        "input that this node does not have",
    ),
    "an input of another graph": (
        lambda m: (linear(m), Annotation({linear(OTHER).args[1]: WEIGHT})),
        tq.AnnotationError,
        "input that this node does not have",
    ),
    "an input by its name": (
        lambda m: (linear(m), Annotation({"input_1": INT8})),  # type: ignore[dict-item]
        tq.AnnotationError,
        "input that this node does not have",
    ),
    "inputs without specs": (
        lambda m: (linear(m), Annotation([linear(m).args[0]])),  # type: ignore[arg-type]
        tq.AnnotationError,
        "no mapping",
    ),
    "shared with a node that is gone": (
        lambda m: (linear(m), Annotation({}, tq.SharedQuantizationSpec(_gone(m)))),
        tq.AnnotationError,
        "not in this graph",
    ),
    "shared with an edge of a node that is gone": (
        lambda m: (linear(m), Annotation({}, tq.SharedQuantizationSpec((_gone(m), linear(m))))),
        tq.AnnotationError,
        "not in this graph",
    ),
    "shared with a node of another graph": (
        lambda m: (linear(m), Annotation({}, tq.SharedQuantizationSpec(linear(OTHER)))),
        tq.AnnotationError,
        "not in this graph",
    ),
    "shared with what has no spec": (
        lambda m: (linear(m), Annotation({}, tq.SharedQuantizationSpec(linear(m, 1)))),
        tq.SharingError,
        "no spec",
    ),
    "derived from a node that is gone": (
        lambda m: (linear(m), Annotation({linear(m).args[2]: _derived(_gone(m))})),
        tq.AnnotationError,
        "not in this graph",
    ),
    "torchao's annotation": (
        lambda m: (linear(m), torchao.QuantizationAnnotation(_annotated=True)),
        tq.AnnotationError,
        "does not read",
    ),
    "torchao's spec for an input": (
        lambda m: (linear(m), Annotation({linear(m).args[0]: _torchaos_spec()})),
        tq.AnnotationError,
        "not a quantization spec of torchquilt",
    ),
    "torchao's spec for the output": (
        lambda m: (linear(m), Annotation({}, _torchaos_spec())),
        tq.AnnotationError,
        "not a quantization spec of torchquilt",
    ),
    "the output of the model": (
        lambda m: (m.graph.output_node(), Annotation({}, INT8)),
        tq.AnnotationError,
        "not a floating point tensor",
    ),
    "the guards": (
        lambda m: (m.graph.find_nodes(op="call_module", target="_guards_fn")[0], Annotation({}, INT8)),
        tq.AnnotationError,
        "not a floating point tensor",
    ),
}


def _torchaos_spec() -> Any:
    return torchao.FixedQParamsQuantizationSpec(torch.int8, 1.0, 0)


@pytest.mark.parametrize("case", WRONG)
def test_an_annotation_that_does_not_hold_is_refused(case: str, program: ExportedProgram) -> None:
    """By the node that carries it and by the quantizer that wrote it, with what would hold."""
    write, kind, said = WRONG[case]
    with unharmed(program), pytest.raises(kind, match=said) as caught:
        tq.prepare_pt2e(program, tq.ComposableQuantizer([Nothing(), Writing(write)]))
    assert caught.value.quantizer == "Writing"
    assert caught.value.expected
    if said != "no mapping":  # which is said before there is a node
        assert caught.value.node in ("linear", "output", "_guards_fn")
        assert caught.value.remedy


def test_an_annotation_that_was_there_before_is_checked_as_well(program: ExportedProgram) -> None:
    """An annotation by hand that does not fit is not silently lost: the error names node and owner."""
    module = program.module()
    linear(module).meta[ANNOTATION_KEY] = Annotation({linear(OTHER).args[1]: WEIGHT}, quantizer="by hand")
    with unharmed(module), pytest.raises(tq.AnnotationError) as caught:
        tq.prepare_pt2e(module, xnnpack())
    assert (caught.value.node, caught.value.quantizer) == ("linear", "by hand")


def split(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Operators that return several values, and one that returns ints."""
    return torch.split(self.fc(x), 3, -1)[0] + torch.argmax(x, -1, keepdim=True)


@pytest.mark.parametrize(
    ("part", "said"), [("split", "several values"), ("argmax", "not a floating point tensor")]
)
def test_an_output_that_is_no_float_tensor_is_not_quantized(part: str, said: str) -> None:
    """A list of tensors and a tensor of ints are refused by name."""
    exported = export(Fn(split, fc=nn.Linear(6, 6)), X)
    with unharmed(exported), pytest.raises(tq.AnnotationError, match=said) as caught:
        tq.prepare_pt2e(exported, outputs_of(part, name="mine"))
    assert (caught.value.node, caught.value.quantizer) == (part, "mine")


def test_double_precision_is_refused_before_it_fails() -> None:
    """quantized_decomposed takes no float64: asking for it is an error of ours, with the node, at prepare."""
    exported = export(nn.Linear(6, 5).double(), X.double())
    with unharmed(exported), pytest.raises(tq.AnnotationError, match="float64") as caught:
        tq.prepare_pt2e(exported, weights_of("linear"))
    assert caught.value.node == "linear"


def _fails(pairs: Any) -> Any:
    raise ZeroDivisionError("a mistake")


@pytest.mark.parametrize(
    "function",
    [_fails, lambda pairs: 3, lambda pairs: (1.0, 0), lambda pairs: (torch.ones(3), torch.zeros(3))],
    ids=["raises", "a number", "numbers", "too many"],
)
def test_a_function_that_derives_parameters_wrongly_is_named_by_its_place(function: Any) -> None:
    """The cause is the error that it raised, or the one that its answer led to."""

    def decide(node: Node) -> Annotation | None:
        if "linear" not in str(node.target):
            return None
        x, weight, bias = node.args
        derived = tq.DerivedQuantizationSpec(((x, node), (weight, node)), function, "int32")
        return Annotation({x: INT8, weight: WEIGHT, bias: derived})

    with pytest.raises(tq.AnnotationError, match="derives these parameters") as caught:
        quantize(nn.Linear(6, 6), ByFunction(decide), X)
    assert "bias → linear" in str(caught.value.node)
    assert caught.value.__cause__ is not None


def test_derived_parameters_of_a_wrong_number_are_refused() -> None:
    """One scale too few for the channels is said as such, not as an error from inside of torch."""

    def decide(node: Node) -> Annotation | None:
        if "linear" not in str(node.target):
            return None
        x, weight, bias = node.args
        derived = tq.DerivedQuantizationSpec(
            ((x, node), (weight, node)),
            lambda pairs: (torch.ones(5), torch.zeros(5, dtype=torch.int64)),
            "int32",
            granularity="per_axis",
            ch_axis=0,
        )
        return Annotation({x: INT8, weight: WEIGHT, bias: derived})

    with pytest.raises(tq.AnnotationError, match="do not fit") as caught:
        quantize(nn.Linear(6, 6), ByFunction(decide), X)
    assert "bias → linear" in str(caught.value.node)
    assert "6" in str(caught.value.expected)
    assert "5" in str(caught.value.got)
