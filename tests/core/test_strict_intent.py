"""Strict intent: each kind of rule that has no effect is an error that says what would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import torchquilt as tq
from strategies import INT8, Fn, export, name_of, normal, weights_of
from torchquilt.backend import Constraint
from torchquilt.support import operators as ops
from torchquilt.support.object_type import object_type
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer, get_embedding_byte_config
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

STATIC = get_symmetric_quantization_config()
DYNAMIC = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
IDS = torch.tensor([[1, 4, 2]])
IMAGE = normal(1, 3, 8, 8)


class FusedLinear(nn.Linear):
    """A class that derives from one of torch."""


class Layer(nn.Module):
    """Two linears with gelu between them."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Linear(6, 6)
        self.output = FusedLinear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """output(gelu(attention(x)))."""
        return self.output(functional.gelu(self.attention(x)))


class Model(nn.Module):
    """An embedding, two layers, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(2))})
        self.head = nn.Linear(6, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """head(layer.1(layer.0(embed(ids))))."""
        x = self.embed(ids)
        for layer in self.encoder["layer"]:  # type: ignore[union-attr]
            x = layer(x)
        return self.head(x)


@pytest.fixture(scope="module", params=[False, True], ids=["non-strict", "strict"])
def exported(request: pytest.FixtureRequest) -> torch.export.ExportedProgram:
    """The model exported in both ways: errors are the same in each."""
    return export(Model(), IDS, strict=request.param)


@pytest.fixture(scope="module")
def image_model() -> torch.export.ExportedProgram:
    """A convolution, a pool and a convolution."""
    parts = {"first": nn.Conv2d(3, 4, 3), "second": nn.Conv2d(4, 4, 3)}
    return export(Fn(lambda m, x: m.second(functional.max_pool2d(m.first(x), 2)), **parts), IMAGE)


def xnnpack() -> XNNPACKQuantizer:
    """A quantizer that is asked for nothing yet."""
    return XNNPACKQuantizer()


def refused(exported: torch.export.ExportedProgram, *quantizers: object) -> tq.IntentError:
    """The error of a composition; without strict it is a warning and stands in the ledger, word for word."""
    composed = tq.ComposableQuantizer(quantizers)
    with pytest.raises(tq.IntentError) as caught:
        tq.explain(exported, composed)
    with pytest.raises(tq.IntentError) as again:
        tq.prepare_pt2e(exported, composed)
    assert str(again.value) == str(caught.value)
    with pytest.warns(UserWarning, match="did you mean|to fix it") as warned:
        ledger = tq.explain(exported, composed, strict=False)
    assert str(caught.value) in ledger.problems
    assert str(caught.value) in [str(warning.message) for warning in warned]
    assert {warning.filename for warning in warned} == {__file__}
    return caught.value


def granted(exported: torch.export.ExportedProgram, *quantizers: object) -> tq.Ledger:
    """The ledger of a composition of which nothing is refused."""
    ledger = tq.explain(exported, tq.ComposableQuantizer(quantizers))
    assert ledger.problems == ()
    return ledger


# ----------------------------------------------------------------------------------------------------------
# A module name that matches nothing
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("encodr.layer", "encoder.layer"),
        ("encoder.layer.0.atention", "encoder.layer.0.attention"),
        ("haed", "head"),
        ("encoder.layer.10", "encoder.layer.1"),
        ("encoder.layers.*", "encoder.layer.*"),
        ("**.outptu", "**.output"),
        ("encoder.*.9?", "encoder.layer"),
    ],
)
@pytest.mark.parametrize("config", [DYNAMIC, None], ids=["config", "None"])
def test_a_module_that_does_not_exist_is_refused(
    name: str, nearest: str, config: Any, exported: torch.export.ExportedProgram
) -> None:
    """A misspelt name is an error with the nearest one, also where it would leave something in float."""
    error = refused(exported, xnnpack().set_global(DYNAMIC).set_module_name(name, config))
    assert name in error.problem
    assert nearest in str(error.remedy)
    assert error.quantizer == "XNNPACKQuantizer"


def test_a_module_without_operators_may_be_named() -> None:
    """A dropout that export left nothing of is there all the same, and can be left in float."""
    model = export(nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 4)), normal(2, 4))
    granted(model, xnnpack().set_global(DYNAMIC).set_module_name("1", None))


# ----------------------------------------------------------------------------------------------------------
# A type that no node comes from
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "config", "would_do"),
    [
        (nn.Conv2d, STATIC, "torch.nn.modules.linear.Linear"),
        (nn.Conv2d, None, "torch.nn.modules.linear.Linear"),
        (functional.conv2d, None, "aten.linear.default"),
        (torch.ops.aten.conv2d.default, STATIC, "aten.linear.default"),
        (functional.softmax, None, "aten.linear.default"),
        (nn.GELU, None, "torch.nn.modules.linear.Linear"),
    ],
    ids=name_of,
)
def test_a_type_that_no_node_comes_from_is_refused(
    subject: object, config: Any, would_do: str, exported: torch.export.ExportedProgram
) -> None:
    """A rule about what the model does not have is an error that names what it has."""
    error = refused(exported, xnnpack().set_global(DYNAMIC).set_object_type(subject, config))
    assert "Nothing in this model comes from" in error.problem
    assert would_do in str(error.remedy)


def test_a_type_means_exactly_that_class(exported: torch.export.ExportedProgram) -> None:
    """A class that derives from it is another one: it can be named itself, or the operator for all."""
    by_class = granted(exported, xnnpack().set_object_type(nn.Linear, DYNAMIC))
    assert {row.module.rpartition(".")[2] for row in by_class.quantized} == {"attention", "head"}
    derived = granted(exported, xnnpack().set_object_type(FusedLinear, DYNAMIC))
    assert {row.module.rpartition(".")[2] for row in derived.quantized} == {"output"}
    assert len(granted(exported, xnnpack().set_object_type(functional.linear, DYNAMIC)).quantized) == 5


def test_where_only_a_derived_class_is_there_the_error_names_it() -> None:
    """The error says that a rule is about one class, and what to name instead."""
    model = export(nn.Sequential(FusedLinear(4, 4)), normal(2, 4))
    error = refused(model, xnnpack().set_object_type(nn.Linear, DYNAMIC))
    assert "exactly one class" in str(error.remedy)
    assert "give a rule for FusedLinear" in str(error.remedy)


def test_a_function_without_a_row_can_be_left_in_float(exported: torch.export.ExportedProgram) -> None:
    """Leaving gelu in float is always possible where the model has it."""
    granted(exported, xnnpack().set_global(DYNAMIC).set_object_type(functional.gelu, None))
    granted(exported, xnnpack().set_global(DYNAMIC).set_object_type("torch.nn.functional.gelu", None))


def test_a_rule_about_a_function_reaches_the_operator_that_it_is() -> None:
    """Of two operators that a table has, the one whose function is left in float stays there."""
    gelu, sine = (
        ops.Operator(name, (f"aten.{name}.default",), (ops.Operand("input_activation", 0, "self"),))
        for name in ("gelu", "sin")
    )
    spec = tq.AllowedSpec("int8", -128, 127, ("per_tensor",))
    both = {"input_activation": (spec,), "output_activation": (spec,)}
    rows = tuple(tq.SupportRow(tq.OperatorPattern.of(operator), both) for operator in (gelu, sine))
    quantizer = tq.PatternQuantizer(tq.SupportTable("acme", rows)).set_global(
        tq.QuantizationConfig(input_activation=INT8, output_activation=INT8)
    )
    quantizer.set_object_type(functional.gelu, None)
    ledger = tq.explain(export(Fn(lambda _, x: functional.gelu(x) + torch.sin(x)), normal(3, 4)), quantizer)
    assert ledger["sin"].is_quantized
    assert ledger["gelu"].code == "excluded_by_intent"
    assert ledger["gelu"].reasons[0].rule == "type torch.nn.functional.gelu"


def test_a_function_that_is_not_one_operator_is_refused() -> None:
    """Only export can tell which operators it becomes, so a rule about it could never take effect."""
    with pytest.raises(tq.IntentError, match="not one operator") as caught:
        xnnpack().set_object_type(functional.interpolate, None)
    assert "name the operators" in str(caught.value.remedy)


# ----------------------------------------------------------------------------------------------------------
# A config that no row supports, a type that the backend does not know
# ----------------------------------------------------------------------------------------------------------


def test_a_config_that_no_row_takes_is_refused() -> None:
    """The error comes where the config is given, with the nearest row, what differs, and the presets."""
    odd = tq.QuantizationConfig(weight=tq.QuantizationSpec("int16", symmetric=True))
    ask: list[Callable[[], object]] = [
        lambda: xnnpack().set_global(odd),
        lambda: xnnpack().set_module_name("fc", odd),
        lambda: xnnpack().set_object_type(nn.Linear, odd),
        lambda: xnnpack().set_object_type(Layer, odd),
    ]
    for rule in ask:
        with pytest.raises(tq.UnsupportedConfigError) as caught:
            rule()
        assert "nearest" in str(caught.value.expected)
        assert "int16" in str(caught.value.got) or "None" in str(caught.value.got)
        assert "static_int8" in str(caught.value.remedy)


@pytest.mark.parametrize("subject", [nn.Conv1d, functional.conv1d, torch.add, nn.ReLU], ids=name_of)
def test_a_config_that_the_type_does_not_take_is_refused(subject: object) -> None:
    """Dynamic convolutions of signals are not to be had; the nearest row and presets are theirs."""
    with pytest.raises(tq.UnsupportedConfigError) as caught:
        xnnpack().set_object_type(subject, DYNAMIC)
    error = caught.value
    assert object_type(subject).name in error.problem
    assert "static" in str(error.expected)
    assert str(error.remedy).startswith("presets that it takes: static_int8, static_int8_per_channel")


@pytest.mark.parametrize("config", ["static", 8, INT8, lambda: STATIC], ids=name_of)
def test_what_is_no_config_is_refused(config: Any) -> None:
    """A rule takes a config or None."""
    with pytest.raises(tq.IntentError):
        xnnpack().set_global(config)


@pytest.mark.parametrize(
    ("subject", "nearest"),
    [
        (functional.gelu, "relu"),
        (torch.sin, "None"),
        (nn.Embedding, "None"),
        (functional.conv3d, "conv2d"),
        (torch.ops.aten.adaptive_avg_pool1d.default, "None"),
    ],
    ids=name_of,
)
def test_an_operator_that_the_backend_does_not_know_is_refused(subject: object, nearest: str) -> None:
    """The error comes where the rule is given, lists what the backend has, and names what comes near."""
    with pytest.raises(tq.IntentError, match="xnnpack has no row for") as caught:
        xnnpack().set_object_type(subject, STATIC)
    assert "linear, relu" in str(caught.value.expected)
    assert nearest in str(caught.value.remedy)
    assert "compose a quantizer that supports it" in str(caught.value.remedy)


@pytest.mark.parametrize("subject", ["liner", 3, None, len], ids=name_of)
def test_what_is_no_type_is_refused(subject: object) -> None:
    """A name without a meaning is an error where it is said, with the nearest name."""
    with pytest.raises(tq.IntentError) as caught:
        xnnpack().set_object_type(subject, STATIC)
    assert "module class" in str(caught.value.expected)
    assert subject != "liner" or "linear" in str(caught.value.remedy)


# ----------------------------------------------------------------------------------------------------------
# A rule that others shadow
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "quantizer",
    [
        xnnpack().set_object_type(Layer, STATIC).set_module_name("encoder", DYNAMIC),
        xnnpack().set_module_name("encoder.layer.*", DYNAMIC).set_module_name("encoder", STATIC),
    ],
    ids=["a type by a name", "a name by a pattern"],
)
def test_a_rule_that_others_shadow_completely_is_refused(
    quantizer: XNNPACKQuantizer, exported: torch.export.ExportedProgram
) -> None:
    """The error names the rule, those that decide in its place, a node for each, and what to narrow."""
    error = refused(exported, quantizer)
    assert "never decides" in error.problem
    assert "decides for" in str(error.got)
    assert "narrow the rules for" in str(error.remedy)


def test_a_global_rule_is_never_shadowed(exported: torch.export.ExportedProgram) -> None:
    """It is for whatever no other rule is about, also where that is nothing."""
    quantizer = xnnpack().set_global(STATIC)
    for name in ("embed", "encoder", "head"):
        quantizer.set_module_name(name, None if name == "embed" else DYNAMIC)
    granted(exported, quantizer)


# ----------------------------------------------------------------------------------------------------------
# Nothing came of it
# ----------------------------------------------------------------------------------------------------------


def test_nothing_at_all_is_an_error_with_the_reasons(exported: torch.export.ExportedProgram) -> None:
    """A filter that lets nothing through: the code of each kind of reason, with an example and a count."""
    error = refused(exported, xnnpack().set_global(DYNAMIC).set_filter_function(lambda node: False))
    assert error.problem == "Something was asked for in this model, and nothing is quantized."
    assert "excluded_by_filter: the filter function leaves out linear (and 4 more)" in str(error.got)


def test_asking_for_nothing_is_no_error(exported: torch.export.ExportedProgram) -> None:
    """A quantizer without rules, or with rules that only leave out, may do nothing."""
    granted(exported, xnnpack())
    granted(exported, xnnpack().set_global(None).set_module_name("head", None))
    granted(exported)


def test_a_quantizer_that_lost_all_to_another_is_told_so(exported: torch.export.ExportedProgram) -> None:
    """The error is about the second one, says who has the nodes, and how that could be changed."""
    error = refused(exported, weights_of("linear", name="mine"), xnnpack().set_global(DYNAMIC))
    assert error.problem.endswith("nothing is quantized by this quantizer.")
    assert error.quantizer == "XNNPACKQuantizer"
    assert "claimed_by:mine: linear is annotated by mine (and 4 more)" in str(error.got)
    assert "compose it before mine" in str(error.remedy)


@pytest.mark.parametrize("nested", [False, True])
def test_the_same_backend_twice_is_two_quantizers(
    nested: bool, exported: torch.export.ExportedProgram
) -> None:
    """The work of one is not that of the other, though both have one name."""
    first, second = xnnpack().set_global(DYNAMIC), xnnpack().set_global(DYNAMIC)
    error = refused(exported, first, tq.ComposableQuantizer([second]) if nested else second)
    assert "claimed_by:XNNPACKQuantizer" in str(error.got)
    assert "the other XNNPACKQuantizer" in str(error.remedy)
    parts = [xnnpack().set_module_name("encoder.layer.0", DYNAMIC), second]
    granted(exported, *(tq.ComposableQuantizer(parts[:1]), *parts[1:]) if nested else parts)


def test_a_rule_that_lost_all_to_another_quantizer_is_named(exported: torch.export.ExportedProgram) -> None:
    """Other rules of the same quantizer may have had their effect."""
    second = xnnpack().set_module_name("head", DYNAMIC).set_module_name("encoder.layer.1", DYNAMIC)
    error = refused(exported, xnnpack().set_module_name("encoder.*.1", DYNAMIC), second)
    assert "by the rule for module encoder.layer.1" in error.problem
    assert "claimed_by" in str(error.got)


def test_what_conditions_kept_from_a_quantizer_is_told_though_another_did_something(
    exported: torch.export.ExportedProgram,
) -> None:
    """A quantizer that could have quantized linears of another dtype is not passed over in silence."""
    embeddings = weights_of("embedding", spec=INT8, position=0)
    error = refused(export(Model().bfloat16(), IDS), embeddings, xnnpack().set_global(DYNAMIC))
    assert error.quantizer == "XNNPACKQuantizer"
    assert "constraint:dtype" in str(error.got)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_backend_that_finds_nothing_to_do_is_no_error(
    backwards: bool, exported: torch.export.ExportedProgram, image_model: torch.export.ExportedProgram
) -> None:
    """A composition for embeddings and layers may meet a model that has only one of them."""
    both = [ExecuTorchEmbeddingQuantizer(), xnnpack().set_global(STATIC)]
    both = both[::-1] if backwards else both
    ids_only = export(nn.Sequential(nn.Embedding(7, 6), nn.GELU()), IDS)
    assert [row.op for row in granted(ids_only, *both).quantized] == ["aten.embedding.default"]
    assert len(granted(image_model, *both).quantized) == 3
    assert len(granted(exported, *both).quantized) == 6


def test_a_backend_alone_that_finds_nothing_to_do_is_an_error(
    image_model: torch.export.ExportedProgram,
) -> None:
    """Each rule of a model of which nothing is quantized is an error, with what the table would take."""
    error = refused(image_model, ExecuTorchEmbeddingQuantizer())
    assert "aten.conv2d.default, aten.max_pool2d.default" in str(error.got)


@pytest.mark.parametrize("nested", [False, True])
def test_what_is_annotated_only_behind_others_counts(
    nested: bool, image_model: torch.export.ExportedProgram
) -> None:
    """A pool that can be quantized once the convolution before it was is the work of who asked for it."""
    pool = xnnpack().set_object_type("max_pool2d", STATIC)
    parts = tq.ComposableQuantizer([pool, xnnpack()]) if nested else pool
    ledger = granted(image_model, parts, xnnpack().set_object_type("conv2d", STATIC))
    assert ledger["max_pool2d"].rule == "type max_pool2d"


def test_a_rule_about_a_taken_embedding_is_refused(exported: torch.export.ExportedProgram) -> None:
    """Also the other way round: the embedding backend behind one that takes all embeddings."""
    byte = ExecuTorchEmbeddingQuantizer().set_global(None)
    byte.set_module_name("embed", get_embedding_byte_config())
    error = refused(exported, ExecuTorchEmbeddingQuantizer(), byte)
    assert "by the rule for module embed" in error.problem


def test_a_misspelt_rule_in_a_composition_names_its_quantizer(exported: torch.export.ExportedProgram) -> None:
    """Of several quantizers the error says whose rule it is."""
    error = refused(exported, ExecuTorchEmbeddingQuantizer(), xnnpack().set_module_name("haed", DYNAMIC))
    assert error.quantizer == "XNNPACKQuantizer"


def test_rules_are_checked_before_anything_is_changed(exported: torch.export.ExportedProgram) -> None:
    """A refused rule leaves the exported program as it was."""
    text = str(exported)
    refused(exported, xnnpack().set_module_name("nowhere", DYNAMIC))
    assert str(exported) == text


class Refusing(tq.PatternQuantizer):
    """A table with one row, whose constraint no linear meets."""

    TABLE = tq.SupportTable(
        "refusing",
        (
            tq.SupportRow(
                tq.OperatorPattern.of(ops.LINEAR),
                {"weight": (tq.AllowedSpec("int8", -127, 127, ("per_tensor",), symmetric=True),)},
                constraints=(Constraint("never", "it never is", lambda match: False),),
            ),
        ),
    )


@pytest.mark.parametrize("is_lost", [True, False])
def test_what_a_row_takes_and_a_constraint_refuses_is_lost_also_beside_others(is_lost: bool) -> None:
    """An operator that no row takes was no chance; the other quantizer's annotation stands for the model."""
    weight = tq.QuantizationSpec("int8", -127, 127, symmetric=True)
    asked = Refusing().set_global(tq.QuantizationConfig(weight=weight))
    others = XNNPACKQuantizer().set_object_type(nn.Conv2d, get_symmetric_quantization_config())
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 4) if is_lost else nn.Tanh())
    exported = export(model, normal(1, 3, 6, 6))
    composed = tq.ComposableQuantizer([others, asked])
    if is_lost:
        with pytest.raises(tq.IntentError, match="constraint:never"):
            tq.prepare_pt2e(exported, composed)
    else:
        tq.prepare_pt2e(exported, composed)
