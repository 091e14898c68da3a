"""The cases of torchao's documentation of ``prepare_pt2e``, with its names and with those of compat.

Each case is code for torchao's API that is handed the names that it uses: run twice, it has to make the same
program, with parameters, and the same bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Node

import torchquilt as tq
from plugins.oracle import are_bit_equal, describe
from plugins.torchao.flows import MinMax
from plugins.torchao.test_compat import TORCHAO
from plugins.torchao.vendors import VENDORS
from strategies import Fn, export, sqnr
from torchquilt_torchao import compat

pytestmark = pytest.mark.filterwarnings("ignore")  # of torchao's own

aten = torch.ops.aten
Annotate = Callable[[Any, Node], Any]


def seeded(*shape: int) -> torch.Tensor:
    """A tensor that is the same in each call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def activation(api: Any, dtype: torch.dtype = torch.uint8, low: int = 0, high: int = 255) -> Any:
    """The spec of activations that the tests of torchao use."""
    return api.QuantizationSpec(
        dtype, api.MinMaxObserver, low, high, torch.per_tensor_affine, is_dynamic=False
    )


def weight(api: Any, *, per_channel: bool = False) -> Any:
    """A spec of weights."""
    scheme = torch.per_channel_affine if per_channel else torch.per_tensor_affine
    observer = api.PerChannelMinMaxObserver if per_channel else api.MinMaxObserver
    return api.QuantizationSpec(torch.int8, observer, -128, 127, scheme, ch_axis=0 if per_channel else None)


def quantizer_of(api: Any, rules: dict[Any, Annotate], **methods: Any) -> Any:
    """A quantizer that annotates the nodes of some targets.

    Args:
        api: where the names come from.
        rules: target → the function that makes the annotation of a node.
        methods: other methods of the quantizer.
    """

    def annotate(self: Any, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            if node.target in rules:
                node.meta["quantization_annotation"] = rules[node.target](api, node)
        return model

    found = {"annotate": annotate, "validate": lambda self, model: None, **methods}
    return type("BackendQuantizer", (api.Quantizer,), found)()


def conv(
    api: Any, node: Node, *, per_channel: bool = False, output: bool = True, sharing: bool = True
) -> Any:
    """A convolution with its input, weight, and maybe its output."""
    inputs = {node.args[0]: activation(api), node.args[1]: weight(api, per_channel=per_channel)}
    out = activation(api) if output else None
    return api.QuantizationAnnotation(inputs, out, allow_implicit_sharing=sharing, _annotated=True)


def conv_with_bias(api: Any, node: Node, *, per_channel: bool) -> Any:
    """A convolution whose bias is derived from input and weight."""
    found = conv(api, node, per_channel=per_channel)

    def derive(sources: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        (scale, _), (weight_scale, _) = (source.calculate_qparams() for source in sources)
        scales = scale * weight_scale
        return scales.to(torch.float32), torch.zeros_like(scales, dtype=torch.int64)

    data, kernel, bias = node.args[:3]
    found.input_qspec_map[bias] = api.DerivedQuantizationSpec(
        derived_from=[(data, node), (kernel, node)],
        derive_qparams_fn=derive,
        dtype=torch.int32,
        quant_min=-(2**31),
        quant_max=2**31 - 1,
        qscheme=torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric,
        ch_axis=0 if per_channel else None,
    )
    return found


def sigmoid(api: Any, node: Node) -> Any:
    """Fixed parameters on either side."""
    fixed = api.FixedQParamsQuantizationSpec(torch.uint8, 1 / 256, 0, 0, 255, torch.per_tensor_affine)
    return api.QuantizationAnnotation({node.args[0]: fixed}, fixed, _annotated=True)


def cat(api: Any, node: Node) -> Any:
    """A concat whose inputs and output have the parameters of the first input."""
    first, *others = node.args[0]
    shared = api.SharedQuantizationSpec((first, node))
    inputs = {first: activation(api), **dict.fromkeys(others, shared)}
    return api.QuantizationAnnotation(inputs, shared, _annotated=True)


def add_like_input(api: Any, node: Node) -> Any:
    """An addition whose second input shares with the first; the output has parameters of its own."""
    first, second = node.args
    shared = api.SharedQuantizationSpec((first, node))
    return api.QuantizationAnnotation(
        {first: activation(api), second: shared}, activation(api), _annotated=True
    )


def wide(api: Any, node: Node) -> Any:
    """Activations of 16 bits."""
    spec = activation(api, torch.int16, -(2**15), 2**15 - 1)
    return api.QuantizationAnnotation({node.args[0]: spec, node.args[1]: weight(api)}, spec, _annotated=True)


def partitioned(api: Any) -> Any:
    """A quantizer that finds convolutions followed by a ReLU as modules."""

    def annotate(self: Any, model: GraphModule) -> GraphModule:
        for found in api.find_sequential_partitions(model, [nn.Conv2d, nn.ReLU]):
            (first,), (last,) = (partition.output_nodes for partition in found)
            first.meta["quantization_annotation"] = conv(api, first, output=False)
            last.meta["quantization_annotation"] = api.QuantizationAnnotation(
                {}, activation(api), _annotated=True
            )
        return model

    return quantizer_of(api, {}, annotate=annotate)


def rewriting(api: Any) -> Any:
    """A quantizer that writes subtractions as additions before it annotates these."""

    def transform_for_annotation(self: Any, model: GraphModule) -> GraphModule:
        for node in list(model.graph.nodes):
            if node.target is aten.sub.Tensor:
                with model.graph.inserting_before(node):
                    negative = model.graph.call_function(aten.neg.default, (node.args[1],))
                    total = model.graph.call_function(aten.add.Tensor, (node.args[0], negative))
                for made, value in ((negative, node.args[1]), (total, node)):
                    made.meta["val"] = value.meta["val"]
                node.replace_all_uses_with(total)
                model.graph.erase_node(node)
        model.recompile()
        return model

    rules = {aten.add.Tensor: add_like_input}
    return quantizer_of(api, rules, transform_for_annotation=transform_for_annotation)


def replacing(api: Any) -> Any:
    """A quantizer whose callback gives each output an observer with a larger smallest scale."""

    def prepare_obs_or_fq_callback(self: Any, model: GraphModule, edge_or_node_to_obs_or_fq: Any) -> None:
        for key in edge_or_node_to_obs_or_fq:
            if isinstance(key, Node):
                made = api.MinMaxObserver(torch.uint8, quant_min=0, quant_max=255, eps=0.5)
                edge_or_node_to_obs_or_fq[key] = made

    rules = {aten.conv2d.default: conv}
    return quantizer_of(api, rules, prepare_obs_or_fq_callback=prepare_obs_or_fq_callback)


def two_convs(*, bias: bool = True) -> nn.Module:
    """Two convolutions of one input, side by side."""
    layers = nn.ModuleList([nn.Conv2d(3, 4, 3, bias=bias), nn.Conv2d(3, 4, 3, bias=bias)])
    return Fn(
        lambda self, x: torch.cat([self.layers[0](x), self.layers[1](x)], 1) if bias else self.layers[0](x),
        layers=layers,
    )


@attrs.frozen(eq=False)
class Case:
    """A model and what makes a quantizer of the names that it is given."""

    model: Callable[[], nn.Module]
    quantizer: Callable[[Any], Any]
    shape: tuple[int, ...] = (2, 3, 8, 8)
    strict: bool = False


def _rules(**rules: Annotate) -> Callable[[Any], Any]:
    names = {"conv": aten.conv2d.default, "linear": aten.linear.default, "sigmoid": aten.sigmoid.default}
    targets = {**names, "cat": aten.cat.default, "add": aten.add.Tensor}
    return lambda api: quantizer_of(api, {targets[name]: rule for name, rule in rules.items()})


def _conv(**options: bool) -> Annotate:
    return lambda api, node: conv(api, node, **options)


CASES = {
    "conv": Case(lambda: nn.Conv2d(3, 4, 3), _rules(conv=conv)),
    "per channel": Case(lambda: nn.Conv2d(3, 4, 3, padding=1), _rules(conv=_conv(per_channel=True))),
    "without output": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), _rules(conv=_conv(output=False))
    ),
    "conv bn": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()), _rules(conv=conv)
    ),
    "derived": Case(
        lambda: nn.Conv2d(3, 4, 3), _rules(conv=lambda *of: conv_with_bias(*of, per_channel=False))
    ),
    "derived per channel": Case(
        lambda: nn.Conv2d(3, 4, 3), _rules(conv=lambda *of: conv_with_bias(*of, per_channel=True))
    ),
    "fixed": Case(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid()), _rules(sigmoid=sigmoid)),
    "shared": Case(two_convs, _rules(conv=conv, cat=cat)),
    "shared through an addition": Case(
        lambda: Fn(
            lambda self, x: torch.cat([self.first(x) + self.second(x), x[:, :, 1:-1, 1:-1]], 1),
            first=nn.Conv2d(3, 3, 3),
            second=nn.Conv2d(3, 3, 3),
        ),
        _rules(conv=conv, cat=cat, add=add_like_input),
    ),
    "implicit sharing": Case(two_convs, _rules(conv=conv)),
    "no implicit sharing": Case(two_convs, _rules(conv=_conv(sharing=False))),
    "16 bits": Case(lambda: nn.Linear(8, 4), _rules(linear=wide), (3, 8)),
    "partitions": Case(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), partitioned, strict=True),
    "transform": Case(lambda: Fn(lambda self, x: x - torch.relu(x)), rewriting, (3, 8)),
    "callback": Case(two_convs, replacing),
}


def prepared(api: Any, case: Case) -> GraphModule:
    """The model of a case, prepared and calibrated."""
    torch.manual_seed(0)
    module = case.model().eval().requires_grad_(False)
    inputs = seeded(*case.shape)
    found: GraphModule = api.prepare_pt2e(
        export(module, inputs, strict=case.strict).module(), case.quantizer(api)
    )
    found(inputs)
    return found


def wide_zeros(line: str) -> str:
    """A line of a program, with the zero points of channels as 64-bit integers; torchao stores some as 32."""
    return re.sub(r"int32(\[[-\d, ]*\], 0, -128, 127, torch.int8)", r"int64\1", line)


@pytest.mark.parametrize("fold", [True, False], ids=["", "unfolded"])
@pytest.mark.parametrize("name", CASES)
def test_a_case_makes_the_same_program_under_either_name(name: str, fold: bool) -> None:
    """Operators, parameters and sharing, and the bits of the output."""
    case = CASES[name]
    expected = TORCHAO.convert_pt2e(prepared(TORCHAO, case), fold_quantize=fold)
    found = compat.convert_pt2e(prepared(compat, case), fold_quantize=fold)
    assert describe(found) == [wide_zeros(line) for line in describe(expected)]
    assert are_bit_equal(found, expected, (seeded(*case.shape),))
    assert any("quantize_per" in line for line in describe(found))


def test_sharing_is_as_asked_for() -> None:
    """Two readers of one tensor have one observer, or each its own, in either flow."""
    for api in (TORCHAO, compat):
        counts = []
        for name in ("implicit sharing", "no implicit sharing"):
            model = prepared(api, CASES[name])
            first = next(node for node in model.graph.nodes if node.op == "placeholder")
            counts.append(len({user.target for user in first.users if "guard" not in str(user.target)}))
        assert counts == [1, 2]


def test_state_of_a_prepared_model_is_loaded_into_another() -> None:
    """As in torchao, a state dict carries what the observers saw."""
    for api in (TORCHAO, compat):
        first, second = (prepared(api, CASES["conv"]) for _ in range(2))
        first(seeded(2, 3, 8, 8) * 5)
        second.load_state_dict(first.state_dict())
        found = [describe(api.convert_pt2e(each)) for each in (first, second)]
        assert found[0] == found[1]


def test_a_second_quantizer_on_a_quantized_model_is_refused() -> None:
    """Torchao prepares once more what it converted; here both quantizers are composed."""
    rules = _rules(conv=conv), _rules(linear=wide)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3)).eval().requires_grad_(False)
    inputs = seeded(2, 3, 8, 8)

    def steps(api: Any, module: GraphModule, quantizer: Any) -> GraphModule:
        made = api.prepare_pt2e(module, quantizer)
        made(inputs)
        found: GraphModule = api.convert_pt2e(made)
        return found

    once = steps(TORCHAO, export(model, inputs).module(), rules[0](TORCHAO))
    twice = steps(TORCHAO, once, rules[1](TORCHAO))
    both = compat.ComposableQuantizer([rule(compat) for rule in rules])
    composed = steps(compat, export(model, inputs).module(), both)
    assert sqnr(twice(inputs), composed(inputs)) > 30
    first = steps(compat, export(model, inputs).module(), rules[0](compat))
    with pytest.raises(tq.ModelError, match="converted already"):
        steps(compat, first, rules[1](compat))


def test_a_composition_that_annotates_a_node_twice_is_an_error() -> None:
    """In torchao by a comparison of annotations, here naming both quantizers."""
    wrong = _rules(conv=_conv(per_channel=True))
    for api, error in ((TORCHAO, Exception), (compat, tq.CompositionError)):
        pair = api.ComposableQuantizer([_rules(conv=conv)(api), wrong(api)])
        with pytest.raises(error):
            prepared(api, Case(CASES["conv"].model, lambda _, pair=pair: pair))


@pytest.mark.parametrize("vendor", ["xnnpack per channel", "vulkan"])
def test_the_numeric_debugger_compares_each_operator(vendor: str) -> None:
    """Each operator has the error that it has in torchao's flow; none is compared with its input."""
    model = Fn(lambda self, x: torch.relu(self.conv(x)) + x, conv=nn.Conv2d(3, 3, 3, padding=1))
    inputs = seeded(2, 3, 8, 8)
    found = []
    for api in (TORCHAO, compat):
        program = export(model.eval().requires_grad_(False), inputs)
        api.generate_numeric_debug_handle(program)
        reference = api.prepare_for_propagation_comparison(program.module())
        made = api.prepare_pt2e(program.module(), MinMax(VENDORS[vendor]()))
        made(inputs)
        logged = api.prepare_for_propagation_comparison(api.convert_pt2e(made))
        results = []
        for each in (reference, logged):
            each(inputs)
            results.append(api.extract_results_from_loggers(each))
        compared = api.compare_results(*results)
        found.append({key.name: float(value.results[0].sqnr) for key, value in compared.items()})
    assert found[0] == found[1]
    assert {"conv2d", "relu", "add"} == {*found[1]}
    assert min(found[1].values()) > 20


def test_switches_of_torchaos_fake_quantizes_are_not_there() -> None:
    """They would change nothing in a model of torchquilt, so code that imports them fails there."""
    with pytest.raises(ImportError):
        from torchquilt_torchao.compat import disable_observer  # noqa: F401
