"""Quantizer and PatternQuantizer: what a base class gives, and what a table and an intent do on a graph."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from strategies import INT8, WEIGHT, Fn, annotated, calls, export, normal, prepare, quantize, sqnr
from torchquilt.support import operators as ops
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer, get_embedding_byte_config
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

STATIC = get_symmetric_quantization_config()
X = normal(3, 6)

ACTIVATION = tq.AllowedSpec("int8", -128, 127, ("per_tensor",), symmetric=False)
SINE = ops.Operator("sine", ("aten.sin.default",), (ops.Operand("input_activation", 0, "self"),))
SMALL = tq.Constraint("small", "at most 16 columns", lambda match: match.anchor.meta["val"].shape[-1] <= 16)
TABLE = tq.SupportTable(
    "acme",
    (
        tq.SupportRow(
            tq.OperatorPattern.of(SINE),
            {"input_activation": (ACTIVATION,), "output_activation": (ACTIVATION,)},
            constraints=(SMALL,),
        ),
    ),
)
CONFIG = tq.QuantizationConfig(input_activation=INT8, output_activation=INT8)


class AcmeQuantizer(tq.PatternQuantizer):
    """A third party's backend in full."""

    TABLE = TABLE
    PRESETS: ClassVar = {"int8": lambda: CONFIG}


def xnnpack() -> XNNPACKQuantizer:
    """Static int8 everywhere."""
    return XNNPACKQuantizer().set_global(STATIC)


def patterns(model: nn.Module, quantizer: tq.Quantizer, *inputs: torch.Tensor) -> dict[str, str]:
    """Node name → pattern, after prepare."""
    return {name: found.pattern for name, found in annotated(prepare(model, quantizer, *inputs)).items()}


# ----------------------------------------------------------------------------------------------------------
# A backend is a table
# ----------------------------------------------------------------------------------------------------------


def test_a_table_is_a_backend() -> None:
    """A class with TABLE and PRESETS annotates, answers and converts, for an operator of its own, too."""
    quantizer = AcmeQuantizer.from_preset("int8")
    model = Fn(lambda _, x: torch.sin(x))
    assert patterns(model, quantizer, X) == {"sin": "sine"}
    assert [row.backend for row in quantizer.quantization_capabilities()] == ["acme"]
    assert sqnr(model(X), quantize(model, quantizer, X)(X)) > 30


def test_a_table_can_be_used_without_a_class() -> None:
    """PatternQuantizer(table) is a quantizer."""
    assert patterns(Fn(lambda _, x: torch.sin(x)), tq.PatternQuantizer(TABLE).set_global(CONFIG), X)


def test_without_a_table_there_is_no_quantizer() -> None:
    """The error says where the table goes."""
    with pytest.raises(tq.IntentError, match="no support table") as caught:
        tq.PatternQuantizer()
    assert "TABLE" in str(caught.value.remedy)


def test_a_constraint_that_does_not_hold_leaves_in_float() -> None:
    """A match that the backend cannot run is not annotated, and its neighbours are."""
    model = Fn(lambda _, x, y: (torch.sin(x), torch.sin(y)))
    found = patterns(model, AcmeQuantizer.from_preset("int8"), normal(2, 16), normal(2, 17))
    assert list(found) == ["sin"]


def test_a_table_with_operators_of_its_own_can_be_asked_about_them() -> None:
    """set_object_type knows the names of the table's operators, by short name and by overload."""
    for subject in ("sine", torch.ops.aten.sin.default, "aten.sin.default"):
        quantizer = AcmeQuantizer().set_object_type(subject, CONFIG)
        assert patterns(Fn(lambda _, x: torch.sin(x)), quantizer, X) == {"sin": "sine"}


@pytest.mark.parametrize("name", XNNPACKQuantizer.PRESETS)
def test_each_preset_is_what_the_backend_takes(name: str) -> None:
    """from_preset makes a quantizer whose config some row takes."""
    quantizer = XNNPACKQuantizer.from_preset(name)
    assert quantizer == XNNPACKQuantizer().set_global(XNNPACKQuantizer.PRESETS[name]())
    assert len(quantizer.quantization_capabilities()) > 0


def test_an_unknown_preset_is_refused() -> None:
    """The error lists those that there are."""
    with pytest.raises(tq.UnsupportedConfigError) as caught:
        XNNPACKQuantizer.from_preset("int3")
    assert "static_int8" in str(caught.value.expected)


def test_two_instances_do_not_share_rules() -> None:
    """A rule of one instance is no rule of another."""
    one, other = XNNPACKQuantizer(), XNNPACKQuantizer()
    one.set_global(STATIC)
    assert len(other.quantization_capabilities()) == 0


def test_a_quantizer_prints_what_it_is_asked() -> None:
    """Repr shows each rule."""
    text = repr(xnnpack().set_module_name("head", None))
    assert "XNNPACKQuantizer" in text
    assert "module head" in text


# ----------------------------------------------------------------------------------------------------------
# A quantizer of one's own
# ----------------------------------------------------------------------------------------------------------


def test_every_other_linear() -> None:
    """The seed case: a few lines quantize every other linear, and what is left goes to XNNPACK."""

    class EveryOtherLinear(tq.Quantizer):
        def annotate(self, model: GraphModule) -> GraphModule:
            for node in calls(model, "aten.linear")[::2]:
                tq.annotate_node(node, tq.QuantizationAnnotation({node.args[1]: WEIGHT}, quantizer=self.name))
            return model

    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4))).eval()
    composed = tq.ComposableQuantizer([EveryOtherLinear(), xnnpack()])
    owners = {name: found.quantizer for name, found in annotated(prepare(model, composed, X)).items()}
    assert owners == {
        "linear": "EveryOtherLinear",
        "linear_1": "XNNPACKQuantizer",
        "linear_2": "EveryOtherLinear",
        "linear_3": "XNNPACKQuantizer",
    }
    assert sqnr(model(X), quantize(model, composed, X)(X)) > 25


# ----------------------------------------------------------------------------------------------------------
# XNNPACK on a graph
# ----------------------------------------------------------------------------------------------------------


def test_what_only_passes_on_needs_something_to_pass_on() -> None:
    """A view of the float input stays as it is; behind a quantized linear it has its parameters."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.view(6, 3).view(3, 6)).view(-1)

    prepared = prepare(Fn(forward, fc=nn.Linear(6, 6)), xnnpack(), X)
    assert [found.pattern for found in annotated(prepared).values()] == ["linear", "view"]
    quantized = tq.convert_pt2e(tq.calibrate(prepared, [(X,)]))
    view = calls(quantized, "aten.view")[-1]
    before, after = view.args[0].args[1:], next(iter(view.users)).args[1:]
    assert before == after


def test_a_long_way_of_views_has_one_set_of_parameters() -> None:
    """reshape, permute, slice … one after the other share what the first tensor had."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x).reshape(2, 3, 3).permute(2, 0, 1)[1:].transpose(0, 1).flatten(1)
        return y.unsqueeze(-1).squeeze(-1)

    quantized = quantize(Fn(forward, fc=nn.Linear(6, 6)), xnnpack(), X)
    linear = calls(quantized, "aten.linear")[0]
    behind = [
        node
        for node in calls(quantized, ".quantize_per_tensor")
        if node.args[0] not in linear.all_input_nodes
    ]
    parameters = {node.args[1:] for node in behind if node.args[0].op == "call_function"}
    assert len(parameters) == 1
    assert len(behind) > 6


def test_following_works_behind_another_backend() -> None:
    """A view behind an int8 tensor of another backend follows it; behind a uint8 one it stays in float."""

    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x).view(-1)

    for dtype, expected in (("int8", ["sine", "view"]), ("uint8", ["sine"])):
        spec = tq.QuantizationSpec(dtype)
        family = (tq.AllowedSpec(dtype, spec.quant_min, spec.quant_max, ("per_tensor",)),)
        row = tq.SupportRow(
            tq.OperatorPattern.of(SINE), {"input_activation": family, "output_activation": family}
        )
        first = tq.PatternQuantizer(tq.SupportTable("acme", (row,))).set_global(
            tq.QuantizationConfig(input_activation=spec, output_activation=spec)
        )
        rest = XNNPACKQuantizer().set_global(STATIC)
        found = patterns(Fn(forward), tq.ComposableQuantizer([first, rest]), X)
        assert list(found.values()) == expected


def test_a_scalar_becomes_a_constant_only_where_it_is_quantized() -> None:
    """X * 0.5 is multiplied with a stored tensor when mul is quantized, and stays as it is when it is not."""
    model = Fn(lambda self, x: self.fc(self.fc(x) * 0.5) + x.sin() * 2, fc=nn.Linear(6, 6)).eval()
    by_name = xnnpack().set_filter_function(lambda node: node.name in ("linear", "mul", "linear_1"))
    prepared = prepare(model, by_name, X)
    first, second = calls(prepared, "aten.mul")
    assert isinstance(first.args[1], torch.fx.Node)
    assert second.args[1] == 2
    assert sqnr(model(X), tq.convert_pt2e(tq.calibrate(prepared, [(X,)]))(X)) > 25


@pytest.mark.parametrize("value", [0.0, -3.5, 1e-3, 7])
def test_a_quantized_scalar_is_nearly_exact(value: float) -> None:
    """One number has the whole range to itself: it comes back within half a step."""
    model = Fn(lambda self, x: self.fc(x) * value, fc=nn.Linear(6, 6)).eval()
    got, want = quantize(model, xnnpack(), X)(X), model(X)
    assert got.shape == want.shape
    assert float((got - want).abs().max()) <= 0.03 * float(want.abs().max()) + 1e-3


@pytest.mark.parametrize(
    ("forward", "pattern"),
    [
        (lambda self, x: torch.relu(self.conv(x)), "conv2d_relu"),
        (lambda self, x: nn.functional.hardtanh(self.conv(x)), "conv2d_hardtanh"),
        (lambda self, x: torch.clamp(self.conv(x), -1, 1), "conv2d_hardtanh"),
        (lambda self, x: self.conv(x), "conv2d"),
        (lambda self, x: torch.relu(self.conv(x) + self.conv(x)), "add_relu"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_fused_patterns_are_quantized_as_one(forward: Any, pattern: str) -> None:
    """No quantize and dequantize stands between an operator and the activation that is fused with it."""
    x = normal(2, 3, 6, 6)
    prepared = prepare(Fn(forward, conv=nn.Conv2d(3, 3, 3)), xnnpack(), x)
    found = [annotation.pattern for annotation in annotated(prepared).values()]
    assert pattern in found
    quantized = tq.convert_pt2e(tq.calibrate(prepared, [(x,)]))
    first, *rest = [n for n in quantized.graph.nodes if prepared_pattern(prepared, n.name) == pattern]
    for node in rest:
        assert node.args[0] is first


def prepared_pattern(prepared: GraphModule, name: str) -> str:
    """The pattern of a node by its name."""
    found = annotated(prepared).get(name)
    return found.pattern if found else ""


def test_other_float_types_are_left_to_others() -> None:
    """XNNPACK computes in float32: a half precision model is not annotated, and that is said."""
    model, x = nn.Linear(6, 6).half(), X.half()
    quantizer = xnnpack()
    graph = export(model, x).module()
    quantizer.annotate(graph)
    assert not annotated(graph)


def test_a_weight_that_is_computed_from_the_input_is_left_in_float() -> None:
    """XNNPACK wants constant weights."""
    model = Fn(lambda self, x: nn.functional.linear(x, x) + self.fc(x)[:, :3], fc=nn.Linear(6, 6))
    found = patterns(model, xnnpack(), X)
    assert found.get("linear") is None
    assert found["linear_1"] == "linear"


def test_the_embedding_quantizer_needs_no_asking() -> None:
    """It can do one thing, which it does everywhere unless it is told where not."""
    ids = torch.tensor([0, 1])
    model = Fn(lambda self, i: self.a(i) + self.b(i), a=nn.Embedding(4, 6), b=nn.Embedding(4, 6))
    assert list(patterns(model, ExecuTorchEmbeddingQuantizer(), ids).values()) == ["embedding_byte"] * 2
    less = ExecuTorchEmbeddingQuantizer().set_module_name("b", None)
    assert list(patterns(model, less, ids)) == ["embedding"]
    assert ExecuTorchEmbeddingQuantizer() == ExecuTorchEmbeddingQuantizer.from_preset("byte_per_row")
    assert get_embedding_byte_config().mode == "weight_only"


def test_the_qat_config_says_what_it_is_meant_for() -> None:
    """It asks for the same integers."""
    asked = get_symmetric_quantization_config(is_qat=True)
    assert asked == attrs.evolve(get_symmetric_quantization_config(), is_qat=True)


@pytest.mark.parametrize(
    ("ranges", "field"),
    [
        ({"act_qmin": 5, "act_qmax": 4}, "quant_min"),
        ({"act_qmin": -129}, "quant_min"),
        ({"weight_qmax": 128}, "quant_max"),
        ({"weight_qmin": 1}, "quant_min"),
    ],
    ids=str,
)
def test_ranges_of_a_config_are_checked(ranges: dict[str, int], field: str) -> None:
    """A range that int8 does not have is refused when the config is made."""
    with pytest.raises(tq.SpecError) as caught:
        get_symmetric_quantization_config(**ranges)
    assert caught.value.field == field


def test_a_narrow_range_is_used() -> None:
    """act_qmin and weight_qmax reach the operators of the converted model."""
    config = get_symmetric_quantization_config(act_qmin=-100, act_qmax=100, weight_qmin=-7, weight_qmax=7)
    model = nn.Linear(6, 6).eval()
    quantized = quantize(model, XNNPACKQuantizer().set_global(config), X)
    limits = {node.args[3:5] for node in calls(quantized, "quantize_per_tensor")}
    assert limits == {(-100, 100), (-7, 7)}
    weight = quantized.state_dict()["weight_int8"]
    assert int(weight.abs().max()) == 7


class Block(nn.Module):
    """A class of the user's own."""


@pytest.mark.parametrize(
    ("type_", "operators"),
    [(nn.Linear, {"linear"}), (torch.add, {"add"}), (torch.ops.aten.mul.Tensor, {"mul"}), (Block, None)],
)
def test_a_rule_about_a_type_is_about_the_rows_of_its_operator(
    type_: Any, operators: set[str] | None
) -> None:
    """A class of the user's own may hold any operator."""
    config = get_symmetric_quantization_config()
    rows = XNNPACKQuantizer().set_object_type(type_, config).quantization_capabilities()
    everywhere = XNNPACKQuantizer().set_global(config).quantization_capabilities()
    assert {row.working for row in rows} == (operators or {row.working for row in everywhere})
