"""Scales that the integers of the kernels can compute with, whatever the magnitudes of a model are."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from strategies import export, normal, prepare, quantize, sqnr
from torchquilt.lowering.verification import LEAST_SQNR
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

CHANNELS = 4
IMAGE, SIGNAL, ROWS = (1, CHANNELS, 5, 5), (1, CHANNELS, 9), (3, CHANNELS)

#: What computes with weights, and the shape of what it reads.
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(CHANNELS, CHANNELS, 3), SIGNAL),
    "conv2d": (lambda: nn.Conv2d(CHANNELS, CHANNELS, 3), IMAGE),
    "depthwise": (lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, groups=CHANNELS), IMAGE),
    "transposed": (lambda: nn.ConvTranspose2d(CHANNELS, CHANNELS, 2), IMAGE),
    "linear": (lambda: nn.Linear(CHANNELS, CHANNELS), ROWS),
}
BEHIND = (nn.Identity, nn.ReLU, lambda: nn.Hardtanh(-1e-3, 1e-3))

# Each example is a program, so to shrink one would take many minutes.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)

magnitudes = st.one_of(st.just(0.0), st.floats(-8, 8).map(lambda power: 10.0**power))
by_channel = st.lists(magnitudes, min_size=CHANNELS, max_size=CHANNELS)


@attrs.frozen
class Drawn:
    """Magnitudes of one layer, and what stands behind it."""

    inputs: float
    weights: list[float]
    biases: list[float]
    behind: int


layers = st.fixed_dictionaries(
    {
        name: st.builds(Drawn, magnitudes, by_channel, by_channel, st.integers(0, len(BEHIND) - 1))
        for name in LAYERS
    }
)


class Beside(nn.Module):
    """Layers beside each other, each with an input and an output of its own."""

    def __init__(self, drawn: dict[str, Drawn]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList()
        for name, one in drawn.items():
            layer = LAYERS[name][0]()
            axis = 1 if name == "transposed" else 0
            shape = [1] * layer.weight.dim()
            shape[axis] = CHANNELS
            with torch.no_grad():
                layer.weight.normal_().mul_(torch.tensor(one.weights).reshape(shape))
                layer.bias.normal_().mul_(torch.tensor(one.biases))
            self.layers.append(nn.Sequential(layer, BEHIND[one.behind]()))

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Outputs of each layer."""
        return tuple(layer(x) for layer, x in zip(self.layers, inputs, strict=True))


def examples(drawn: dict[str, Drawn]) -> tuple[torch.Tensor, ...]:
    """An input for each layer."""
    return tuple(normal(*LAYERS[name][1]) * one.inputs for name, one in drawn.items())


def lowered(model: GraphModule, inputs: tuple[torch.Tensor, ...]) -> tq.LoweredProgram:
    """The program, which computes what the model does to 40 dB or a step of the output."""
    program = tq.lower(model, inputs, verify=LEAST_SQNR)
    assert program.verification
    return program


@pytest.mark.parametrize("per_channel", [True, False], ids=["per channel", "per tensor"])
@settings(max_examples=4, phases=PHASES)
@given(layers)
def test_static_layers_of_any_magnitudes_are_computed_as_converted(
    per_channel: bool, drawn: dict[str, Drawn]
) -> None:
    """From 1e-8 to 1e8, each channel for itself: the program loads, and says what the model says."""
    inputs = examples(drawn)
    config = get_symmetric_quantization_config(is_per_channel=per_channel)
    lowered(quantize(Beside(drawn), XNNPACKQuantizer().set_global(config), *inputs), inputs)


@settings(max_examples=2, phases=PHASES)
@given(layers)
def test_dynamic_layers_of_any_weights_are_computed_as_converted(drawn: dict[str, Drawn]) -> None:
    """A bias is added in float there, and a scale of weights is as good as any other."""
    # The operator that chooses a scale for each token chooses none below 2**-23, and only linears have it.
    drawn = {
        name: attrs.evolve(one, inputs=max(one.inputs, 1.0)) if name == "linear" else one
        for name, one in drawn.items()
    }
    inputs = examples(drawn)
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    lowered(quantize(Beside(drawn), XNNPACKQuantizer().set_global(config), *inputs), inputs)


STATIC = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))


def raised(model: GraphModule) -> dict[str, str]:
    """Place → what the ledger says of a scale that was raised."""
    return {one.edges: one.text for one in tq.ledger_of(model).warnings if one.code == "scale_raised"}


class Sums(nn.Module):
    """Sums and products of tensors whose magnitudes are far apart."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Large numbers that cancel out, large ones beside small ones, and the other way round."""
        large, small = x * 1e8, y * 1e-8
        cancelled = large - (large + y * 0)
        return cancelled + small, large * small, small * small, (x - 1e-7) - x, y * 0 * large


def test_sums_and_products_of_any_magnitudes_are_computed_as_converted() -> None:
    """The ratio of scales stays where the kernels are exact."""
    inputs = (normal(4, 16), normal(4, 16, seed=1))
    lowered(quantize(Sums(), STATIC, *inputs), inputs)


def test_a_pruned_channel_is_said_nothing_of() -> None:
    """A larger scale loses nothing where all weights are zeros."""
    layer = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        layer.weight[1] = 0
        layer.bias[1] = 50.0
    image = normal(1, 3, 8, 8) * 1e-3
    model = quantize(layer, STATIC, image)
    scale = model.state_dict()["weight_int8_scale"]
    assert scale[1] > 100 * 2.0**-16
    assert not raised(model)
    assert sqnr(layer(image), lowered(model, (image,)).run(image)) > 40


def test_the_ledger_says_which_scale_was_raised_and_why() -> None:
    """The edge or node, the factor, and what it is good for."""
    model = quantize(nn.Sequential(nn.Linear(8, 4), nn.Hardtanh(-1e-4, 1e-4)), STATIC, normal(4, 8) * 1e3)
    ((edge, text),) = raised(model).items()
    assert edge == "hardtanh"
    assert "times as large as calibration chose it, so that the integers of linear can be computed" in text
    assert text in str(tq.ledger_of(model))


class Joined(nn.Module):
    """A tensor that is raised because of one reader, and has a group in common with others."""

    def __init__(self, swapped: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.swapped = swapped

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two layers beside each other, one after the other in the graph, as one tensor."""
        makers = [lambda: self.first(x * 1e4), lambda: self.second(x)]
        parts = [make().clamp(-1e-3, 1e-3) for make in (makers[::-1] if self.swapped else makers)]
        return torch.cat(parts[::-1] if self.swapped else parts, dim=1)


def scales_of(model: GraphModule) -> list[float]:
    """Scales of all tensors with one, in the order of their size."""
    nodes = (node for node in model.graph.nodes if "quantize_per_tensor.default" in str(node.target))
    return sorted({float(node.args[1]) for node in nodes})


@pytest.mark.parametrize("swapped", [False, True])
def test_a_group_has_one_scale_after_it_was_raised(swapped: bool) -> None:
    """Whichever operator raised it, all of the group are quantized with it; in whatever order the graph has
    them.
    """
    x = normal(4, 8)
    model = quantize(Joined(swapped), STATIC, x)
    assert raised(model)
    assert scales_of(model) == scales_of(quantize(Joined(not swapped), STATIC, x))
    (cat,) = model.graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default)
    (output,) = cat.users
    assert {node.args[1] for node in cat.all_input_nodes} == {output.args[1]}
    lowered(model, (x,))


def test_it_is_an_error_where_no_scale_is_left() -> None:
    """The parameters of an output are fixed by the quantizer: says what scale it would need, and where."""

    class Fixing(XNNPACKQuantizer):
        def prepare_obs_or_fq_callback(self, model: GraphModule, points: dict[Any, Any]) -> None:
            from torchquilt.pt2e.observer_points import FixedPoint

            for edge, point in points.items():
                if getattr(edge, "name", "") == "linear":
                    fixed = tq.FixedQParamsQuantizationSpec("int8", 1e-9, 0, -128, 127)
                    points[edge] = FixedPoint(fixed, point.names)

    quantizer = Fixing().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = tq.prepare_pt2e(export(nn.Linear(8, 4), normal(4, 8)), quantizer)
    prepared(normal(4, 8))
    with pytest.raises(tq.CalibrationError, match="No scale lets") as caught:
        tq.convert_pt2e(prepared)
    assert caught.value.node == "linear"
    assert "a scale of at least" in str(caught.value)


class Circle(nn.Module):
    """A layer whose input and output have one set of parameters, and whose weight makes numbers larger."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 4)
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(4) * 1e6)
            self.layer.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Read and join what was made."""
        x = self.first(x)
        return self.last(torch.cat([x, self.layer(x).clamp(-1.0, 1.0)], dim=1))


def test_a_circle_of_scales_is_refused() -> None:
    """Raising the scale of the output raises that of the input, and never comes to an end."""
    prepared = prepare(Circle(), STATIC, normal(4, 4))
    prepared(normal(4, 4))
    with pytest.raises(tq.CalibrationError, match="No scale lets"):
        tq.convert_pt2e(prepared)


def test_unfolded_and_reference_models_have_the_same_scales() -> None:
    """Whatever convert is asked for is made of the settled scales."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    with torch.no_grad():
        model[0].weight[0] *= 1e-6
        model[0].bias[0] = 30.0
    image = normal(1, 3, 6, 6) * 1e-3
    prepared = tq.calibrate(prepare(model, STATIC, image), [(image,)])
    converted = tq.convert_pt2e(prepared)
    expected = converted(image)
    assert raised(converted)
    assert torch.equal(tq.convert_pt2e(prepared, fold_quantize=False)(image), expected)
    reference = tq.convert_pt2e(prepared, use_reference_representation=True)
    assert sqnr(expected, reference(image)) > 40
    assert sqnr(expected, lowered(converted, (image,)).run(image)) > 40


def test_limits_are_positive() -> None:
    """A table that says otherwise is refused when it is made."""
    with pytest.raises(tq.PatternError, match="positive"):
        tq.ArithmeticLimits(product_ratio=0.0)
