"""Rules of the user: the most specific one wins, and what cannot take effect is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn import functional

import torchquilt as tq
from strategies import Fn, annotated, calls, export, name_of, normal
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

STATIC = get_symmetric_quantization_config()
CHANNELS = get_symmetric_quantization_config(is_per_channel=True)
DYNAMIC = get_symmetric_quantization_config(is_dynamic=True)
NARROW = get_symmetric_quantization_config(weight_qmin=-7, weight_qmax=7)


class Block(nn.Module):
    """Two linears and an add."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.out = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """out(tanh(fc(x))) + x."""
        return self.out(torch.tanh(self.fc(x))) + x


class Model(nn.Module):
    """Twelve blocks, so that layer.1 and layer.10 both are there, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Block() for _ in range(12))
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """head(layer.11(… layer.0(x)))."""
        for block in self.layer:
            x = block(x)
        return self.head(x)


@pytest.fixture(scope="module", params=[False, True], ids=["non-strict", "strict"])
def exported(request: pytest.FixtureRequest) -> torch.export.ExportedProgram:
    """The model exported in both ways: rules mean the same in each."""
    return export(Model(), normal(2, 4), strict=request.param)


def prepared(quantizer: tq.Quantizer, exported: torch.export.ExportedProgram) -> GraphModule:
    """Prepared with a quantizer."""
    return tq.prepare_pt2e(exported, quantizer, activation_observer="minmax")


def kind_of(found: tq.QuantizationAnnotation, node: Node) -> str:
    """Config of an annotated linear, one of several."""
    weight = found.input_qspec_map[node.args[1].args[0]]
    assert isinstance(weight, tq.QuantizationSpec)
    if found.output_qspec is None:
        return "dynamic"
    if weight.ch_axis is not None:
        return "channels"
    return "narrow" if weight.quant_max == 7 else "static"


def linears(quantizer: tq.Quantizer, exported: torch.export.ExportedProgram) -> dict[str, str]:
    """Module path → config, for each linear that is annotated."""
    graph = prepared(quantizer, exported)
    found = annotated(graph)
    return {
        list(node.meta["nn_module_stack"].values())[-1][0]: kind_of(found[node.name], node)
        for node in calls(graph, "aten.linear")
        if node.name in found
    }


def xnnpack() -> XNNPACKQuantizer:
    """A quantizer that is asked for nothing yet."""
    return XNNPACKQuantizer()


# ----------------------------------------------------------------------------------------------------------
# Who decides
# ----------------------------------------------------------------------------------------------------------


def test_a_global_config_is_for_everything(exported: torch.export.ExportedProgram) -> None:
    """Without other rules every linear has it."""
    found = linears(xnnpack().set_global(STATIC), exported)
    assert len(found) == 25
    assert set(found.values()) == {"static"}


def test_none_leaves_in_float(exported: torch.export.ExportedProgram) -> None:
    """A module with None stays in float, and everything else is as asked."""
    found = linears(xnnpack().set_global(STATIC).set_module_name("layer.3", None), exported)
    assert len(found) == 23
    assert not any(path.startswith("layer.3.") for path in found)


def test_a_module_name_is_whole_parts(exported: torch.export.ExportedProgram) -> None:
    """layer.1 holds layer.1.fc and layer.1.out, and neither layer.10 nor layer.11."""
    assert set(linears(xnnpack().set_module_name("layer.1", STATIC), exported)) == {
        "layer.1.fc",
        "layer.1.out",
    }


def test_the_longest_module_name_wins(exported: torch.export.ExportedProgram) -> None:
    """A rule about a part of a module beats the one about the module, in whatever order they were given."""
    one = xnnpack().set_module_name("layer.1", STATIC).set_module_name("layer.1.fc", NARROW)
    other = xnnpack().set_module_name("layer.1.fc", NARROW).set_module_name("layer.1", STATIC)
    for quantizer in (one, other):
        assert linears(quantizer, exported) == {"layer.1.fc": "narrow", "layer.1.out": "static"}


def test_a_name_beats_a_type_beats_global(exported: torch.export.ExportedProgram) -> None:
    """Module name > innermost module class > operator > everywhere."""
    quantizer = (
        xnnpack()
        .set_module_name("layer.0.fc", DYNAMIC)
        .set_object_type(nn.Linear, CHANNELS)
        .set_object_type(Block, NARROW)
        .set_global(STATIC)
    )
    found = linears(quantizer, exported)
    assert found.pop("layer.0.fc") == "dynamic"
    assert set(found.values()) == {"channels"}


def test_the_innermost_module_class_wins(exported: torch.export.ExportedProgram) -> None:
    """Of two classes around a node the inner one decides: Linear inside of Block, Block for the rest."""
    quantizer = xnnpack().set_object_type(Block, STATIC).set_object_type(nn.Linear, CHANNELS)
    rules = {(found.pattern, found.rule) for found in annotated(prepared(quantizer, exported)).values()}
    assert rules == {("linear", "type torch.nn.modules.linear.Linear"), ("add", f"type {__name__}.Block")}


def test_a_class_of_ones_own_is_all_that_is_inside(exported: torch.export.ExportedProgram) -> None:
    """set_object_type(Block) takes what is in blocks and leaves the head in float."""
    found = linears(xnnpack().set_object_type(Block, STATIC), exported)
    assert len(found) == 24
    assert "head" not in found


def test_a_module_class_beats_an_operator(exported: torch.export.ExportedProgram) -> None:
    """As in PyTorch's own quantizers: in a Block its rule decides, elsewhere the one about the operator."""
    quantizer = xnnpack().set_object_type(functional.linear, CHANNELS).set_object_type(Block, STATIC)
    assert linears(quantizer, exported) == {
        path: "channels" if path == "head" else "static" for path in linears(quantizer, exported)
    }
    assert len(linears(quantizer, exported)) == 25


@pytest.mark.parametrize(
    "subject",
    [
        nn.Linear,
        functional.linear,
        torch.ops.aten.linear.default,
        torch.ops.aten.linear,
        "nn.Linear",
        "linear",
    ],
    ids=name_of,
)
def test_a_type_has_many_names(subject: object, exported: torch.export.ExportedProgram) -> None:
    """Module class, functional, overload, packet and text take the same 25 linears, and no add."""
    graph = prepared(xnnpack().set_object_type(subject, STATIC), exported)
    assert {found.pattern for found in annotated(graph).values()} == {"linear"}
    assert len(annotated(graph)) == 25


def test_a_functional_linear_is_no_module() -> None:
    """nn.Linear is about modules, functional.linear about the operator wherever it comes from."""
    model = Fn(
        lambda self, x: functional.linear(self.fc(x), self.weight),
        fc=nn.Linear(4, 4),
        weight=nn.Parameter(normal(4, 4)),
    )
    program = export(model, normal(2, 4))
    assert len(annotated(prepared(xnnpack().set_object_type(nn.Linear, STATIC), program))) == 1
    assert len(annotated(prepared(xnnpack().set_object_type(functional.linear, STATIC), program))) == 2


def test_a_later_rule_for_the_same_thing_replaces_the_earlier(exported: torch.export.ExportedProgram) -> None:
    """Asking again is changing one's mind."""
    quantizer = (
        xnnpack()
        .set_global(DYNAMIC)
        .set_global(STATIC)
        .set_module_name("head", STATIC)
        .set_module_name("head", NARROW)
        .set_object_type(nn.Linear, None)
        .set_object_type(nn.Linear, CHANNELS)
    )
    found = linears(quantizer, exported)
    assert found.pop("head") == "narrow"
    assert set(found.values()) == {"channels"}


# ----------------------------------------------------------------------------------------------------------
# Filters
# ----------------------------------------------------------------------------------------------------------


def test_a_filter_is_exact(exported: torch.export.ExportedProgram) -> None:
    """A filter for the linear node never takes the add behind it, or anything else."""
    quantizer = xnnpack().set_global(STATIC).set_filter_function(lambda node: node.name == "linear_1")
    assert list(annotated(prepared(quantizer, exported))) == ["linear_1"]


def test_a_filter_narrows_every_rule(exported: torch.export.ExportedProgram) -> None:
    """A node has to be asked for and let through."""
    quantizer = (
        xnnpack()
        .set_module_name("layer.2", STATIC)
        .set_filter_function(lambda node: "linear" in str(node.target))
    )
    assert set(linears(quantizer, exported)) == {"layer.2.fc", "layer.2.out"}
    assert len(annotated(prepared(quantizer, exported))) == 2


def test_a_filter_sees_shapes() -> None:
    """The seed case of the README: only linears with a 3-D input."""
    model = Fn(lambda self, x: self.a(x) + self.b(x[0]), a=nn.Linear(4, 4), b=nn.Linear(4, 4))

    def is_3d(node: Node) -> bool:
        return "linear" in str(node.target) and node.args[0].meta["val"].dim() == 3

    quantizer = xnnpack().set_global(STATIC).set_filter_function(is_3d)
    assert list(annotated(prepared(quantizer, export(model, normal(2, 3, 4))))) == ["linear"]


def test_a_filter_that_fails_is_an_error_with_the_node(exported: torch.export.ExportedProgram) -> None:
    """The user's exception is the cause, and the node is named."""

    def broken(node: Node) -> bool:
        return node.meta["missing"]

    with pytest.raises(tq.IntentError) as caught:
        prepared(xnnpack().set_global(STATIC).set_filter_function(broken), exported)
    assert caught.value.node == "linear"
    assert isinstance(caught.value.__cause__, KeyError)


# ----------------------------------------------------------------------------------------------------------
# Patterns of several operators
# ----------------------------------------------------------------------------------------------------------


def with_relu() -> torch.export.ExportedProgram:
    """A convolution with relu, and a linear with relu."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.act2(self.fc(self.act(self.conv(x)).mean((2, 3))))

    parts = {"conv": nn.Conv2d(3, 4, 3), "act": nn.ReLU(), "fc": nn.Linear(4, 4), "act2": nn.ReLU()}
    return export(Fn(forward, **parts), normal(2, 3, 6, 6))


@pytest.mark.parametrize("way", ["name", "type", "filter"])
def test_without_its_activation_a_pattern_falls_back_to_the_shorter(way: str) -> None:
    """A convolution is quantized by itself if its relu is to stay in float."""
    quantizer = xnnpack().set_global(STATIC)
    if way == "name":
        quantizer.set_module_name("act", None).set_module_name("act2", None)
    elif way == "type":
        quantizer.set_object_type(nn.ReLU, None)
    else:
        quantizer.set_filter_function(lambda node: "relu" not in str(node.target))
    found = {
        name: annotation.pattern for name, annotation in annotated(prepared(quantizer, with_relu())).items()
    }
    assert found["conv2d"] == "conv2d"
    assert found["linear"] == "linear"
    assert not any("relu" in name for name in found)


def test_all_of_a_pattern_has_to_be_asked_for() -> None:
    """A rule about the linear alone takes the linear without the relu behind it."""
    found = annotated(prepared(xnnpack().set_module_name("fc", STATIC), with_relu()))
    assert {name: annotation.pattern for name, annotation in found.items()} == {"linear": "linear"}


def test_two_configs_in_one_pattern_do_not_mix() -> None:
    """A linear and its relu that are asked for differently are two matches."""
    quantizer = xnnpack().set_module_name("fc", NARROW).set_module_name("act2", STATIC)
    found = annotated(prepared(quantizer, with_relu()))
    assert found["linear"].pattern == "linear"
    assert found["relu_1"].pattern == "relu"


# ----------------------------------------------------------------------------------------------------------
# Values
# ----------------------------------------------------------------------------------------------------------


def test_an_intent_is_a_value() -> None:
    """Changing makes another one; equal rules are equal."""
    one = tq.Intent().with_global(STATIC)
    assert one == tq.Intent().with_global(STATIC)
    assert one != one.with_name("a", None)
    assert one.with_name("a", STATIC).with_name("a", None) == one.with_name("a", None)
    with pytest.raises(AttributeError):
        one.global_rule = None  # type: ignore[misc]


def test_quantizers_with_equal_rules_are_equal() -> None:
    """Equality is by class, table and rules."""
    assert xnnpack().set_global(STATIC) == xnnpack().set_global(STATIC)
    assert xnnpack().set_global(STATIC) != xnnpack().set_global(DYNAMIC)
    assert xnnpack() != "XNNPACKQuantizer"


def test_setters_return_the_quantizer() -> None:
    """Calls can be chained."""
    quantizer = xnnpack()
    assert quantizer.set_global(STATIC) is quantizer
    assert quantizer.set_module_name("a", None) is quantizer
    assert quantizer.set_object_type(nn.Linear, None) is quantizer
    assert quantizer.set_filter_function(None) is quantizer
