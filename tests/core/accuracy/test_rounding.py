"""Rounding of weights: the errors that are told are those of layers, and convert stores what was chosen."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Node

import torchquilt as tq
from control_flow import Branches, Rows
from strategies import INT8, ByFunction, Fn, calls, export, normal, one_call
from torchquilt.pt2e.observer_points import ConstantPoint
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config
from unharmed import unharmed

#: Operator → position of its weight, and the axis of its outputs.
WEIGHTS = {"linear": (1, 0), "addmm": (2, 1), "mm": (1, 1), "matmul": (1, 1), "embedding": (0, 0)}


def weights(
    spec: Callable[[int], tq.QuantizationSpec] | None = None, *, activation: Any = None, implicit: bool = True
) -> ByFunction:
    """A quantizer of the weights of all layers, and maybe of what they read."""

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        name = str(node.target).removeprefix("aten.").split(".")[0]
        if node.op != "call_function" or (name not in WEIGHTS and not name.startswith("conv")):
            return None
        position, axis = WEIGHTS.get(name, (1, 0))
        if name.startswith("conv_transpose"):
            axis = 1
        read: dict[Any, Any] = {node.args[position]: (spec or per_axis)(axis)}
        if activation is not None:
            read[node.args[0]] = activation
        return tq.QuantizationAnnotation(read, None, quantizer="weights", allow_implicit_sharing=implicit)

    return ByFunction(decide)


def per_axis(axis: int) -> tq.QuantizationSpec:
    """4 bits, a scale for each output."""
    return tq.QuantizationSpec("int8", -8, 7, "per_axis", ch_axis=axis, symmetric=True)


def per_group(_: int) -> tq.QuantizationSpec:
    """4 bits, a scale for each four inputs of an output."""
    return tq.QuantizationSpec("int8", -8, 7, "per_group", group_size=4, symmetric=True)


def per_tensor(_: int) -> tq.QuantizationSpec:
    """4 bits, one scale."""
    return tq.QuantizationSpec("int8", -8, 7, symmetric=True)


def affine(axis: int) -> tq.QuantizationSpec:
    """4 bits, unsigned, with zero points."""
    return tq.QuantizationSpec("uint8", 0, 15, "per_axis", ch_axis=axis)


def batches(*shape: int, number: int = 3) -> list[tuple[torch.Tensor]]:
    """Inputs whose elements go together, so that errors can make up for each other."""
    mixed = normal(shape[1], shape[1], seed=9)
    return [(torch.einsum("nc...,cd->nd...", normal(*shape, seed=seed), mixed),) for seed in range(number)]


def prepared_of(model: nn.Module, quantizer: Any, data: list[Any]) -> GraphModule:
    """Exported, prepared and calibrated."""
    return tq.calibrate(tq.prepare_pt2e(export(model, *data[0]), quantizer), data)


def points(model: nn.Module) -> list[ConstantPoint]:
    """The points of constants."""
    return [module for module in model.modules() if isinstance(module, ConstantPoint)]


def integers(model: GraphModule) -> list[torch.Tensor]:
    """The stored integers of a converted model, but for zero points."""
    return [each for name, each in model.named_buffers() if each.dtype in (torch.int8, torch.uint8)]


def relative_error(model: Any, converted: Any, data: list[Any]) -> float:
    """Squared error of the outputs, without a bias, over that of the outputs themselves."""
    with torch.no_grad():
        expected = torch.cat([model(*batch).flatten() for batch in data]).double()
        found = torch.cat([converted(*batch).flatten() for batch in data]).double()
    return float((found - expected).square().sum() / expected.square().sum())


def conv(kind: Any, *args: Any, **kwargs: Any) -> nn.Module:
    """A convolution without a bias."""
    return kind(*args, bias=False, **kwargs)


def product(operator: Any) -> nn.Module:
    """A product with a stored matrix of 8 × 6."""
    return Fn(lambda m, x: operator(m, x), weight=normal(8, 6, seed=5), bias=torch.zeros(6))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(8, 6, bias=False), (5, 8)),
    "mm": (lambda: product(lambda m, x: x @ m.weight), (5, 8)),
    "addmm": (lambda: product(lambda m, x: torch.addmm(m.bias, x, m.weight)), (5, 8)),
    "conv1d": (lambda: conv(nn.Conv1d, 4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv2d": (
        lambda: conv(nn.Conv2d, 4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        (2, 4, 7, 8),
    ),
    "conv2d, same": (lambda: conv(nn.Conv2d, 4, 6, (2, 3), padding="same"), (2, 4, 5, 5)),
    "conv2d, valid": (lambda: conv(nn.Conv2d, 4, 6, 3, padding="valid"), (2, 4, 5, 5)),
    "grouped": (lambda: conv(nn.Conv2d, 4, 6, 3, groups=2, padding=1), (2, 4, 5, 5)),
    "depthwise": (lambda: conv(nn.Conv2d, 4, 8, 3, groups=4), (2, 4, 5, 5)),
    "conv3d": (lambda: conv(nn.Conv3d, 4, 6, 2, stride=2), (2, 4, 4, 5, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_errors_that_are_told_are_those_of_the_layer(name: str) -> None:
    """Before and after are what a loop over the batches measures at converted models; after is smaller."""
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    model, data = make().eval(), batches(*shape)
    prepared = prepared_of(model, weights(), data)
    with unharmed(prepared):
        rounded = tq.recovery.round_weights(prepared, data)
    (step,) = tq.recovery.steps_of(rounded)
    (gain,) = step.gain
    assert step.left == ()
    assert gain.before == pytest.approx(relative_error(model, tq.convert_pt2e(prepared), data), rel=1e-4)
    assert gain.after == pytest.approx(relative_error(model, tq.convert_pt2e(rounded), data), rel=1e-4)
    assert gain.after < 0.9 * gain.before


@pytest.mark.parametrize("method", ["gptq", "adaround"])
@pytest.mark.parametrize("spec", [per_axis, per_group, per_tensor, affine], ids=lambda spec: spec.__name__)
def test_each_granularity_and_method_stores_what_was_chosen(spec: Any, method: str, tmp_path: Path) -> None:
    """The integers of the converted model are those that were chosen, also once it was saved and loaded."""
    torch.manual_seed(0)
    model, data = nn.Linear(8, 6, bias=False), batches(5, 8)
    prepared = prepared_of(model, weights(spec), data)
    rounded = tq.recovery.round_weights(prepared, data, method=method, steps=60)
    (point,), (gain,) = points(rounded), tq.recovery.steps_of(rounded)[0].gain
    assert point.chosen is not None
    converted = tq.convert_pt2e(rounded)
    (stored,) = integers(converted)
    assert torch.equal(stored, point.chosen.integers)
    assert not torch.equal(stored, integers(tq.convert_pt2e(prepared))[0])
    assert gain.after == pytest.approx(relative_error(model, converted, data), rel=1e-4)
    assert torch.equal(tq.convert_pt2e(rounded, fold_quantize=False)(*data[0]), converted(*data[0]))
    tq.save(converted, tmp_path / "model.pt2", data[0])
    assert torch.equal(tq.load(tmp_path / "model.pt2").module()(*data[0]), converted(*data[0]))


def test_no_output_becomes_worse() -> None:
    """Each output by itself, with inputs for which GPTQ finds nothing, and for which it finds much."""
    for seed in range(5):
        torch.manual_seed(seed)
        model = nn.Linear(8, 16, bias=False)
        data = [(normal(1 + 3 * seed, 8, seed=seed),)]
        prepared = prepared_of(model, weights(), data)
        rounded = tq.recovery.round_weights(prepared, data, choose_scales=seed % 2 == 0)
        before, after = (tq.convert_pt2e(one)(*data[0]) for one in (prepared, rounded))
        expected = model(*data[0]).detach()
        errors = [(one - expected).double().square().sum(0) for one in (before, after)]
        assert bool((errors[1] <= errors[0] * (1 + 1e-4)).all())
        assert float(errors[1].sum()) < float(errors[0].sum())


def test_where_the_nearest_are_best_they_stay() -> None:
    """Inputs that have nothing to do with each other: rounding to the nearest is the best there is."""
    data = [(torch.eye(8),)]
    prepared = prepared_of(nn.Linear(8, 6, bias=False), weights(), data)
    rounded = tq.recovery.round_weights(prepared, data, choose_scales=False)
    (step,) = tq.recovery.steps_of(rounded)
    assert step.left == (("linear", "the integers that it has make the smallest error"),)
    assert all(point.chosen is None for point in points(rounded))


def test_a_second_rounding_is_no_worse_than_the_first() -> None:
    """It begins with the integers that are there."""
    torch.manual_seed(0)
    data = batches(5, 8)
    first = tq.recovery.round_weights(prepared_of(nn.Linear(8, 6), weights(), data), data)
    second = tq.recovery.round_weights(first, data, method="adaround", steps=40)
    told = [one for step in tq.recovery.steps_of(second)[1:] for one in step.gain]
    assert all(gain.after <= gain.before for gain in told)
    assert first is not second


class Shared(nn.Module):
    """One linear that is called twice, with other inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8, bias=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two outputs."""
        return self.fc(x), self.fc(x * torch.arange(8.0))


@pytest.mark.parametrize("implicit", [True, False], ids=["one point", "a point each"])
def test_a_weight_that_two_layers_share_has_one_set_of_integers(implicit: bool) -> None:
    """Its error is that of both, and it is stored once."""
    torch.manual_seed(0)
    model, data = Shared(), batches(5, 8)
    prepared = prepared_of(model, weights(implicit=implicit), data)
    rounded = tq.recovery.round_weights(prepared, data)
    (gain,) = tq.recovery.steps_of(rounded)[0].gain
    converted = tq.convert_pt2e(rounded)
    assert len(integers(converted)) == 1

    def both(run: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: torch.cat(run(x))

    assert gain.after == pytest.approx(relative_error(both(model), both(converted), data), rel=1e-4)
    assert gain.after < gain.before


class Tied(nn.Module):
    """A table whose rows are looked up, and that the last linear has for its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Scores."""
        return torch.nn.functional.linear(self.table(ids).cumsum(0), self.table.weight)


def test_the_table_of_a_lookup_keeps_its_nearest_integers() -> None:
    """The linear that shares it has integers of its own; the lookup is left with a reason."""
    torch.manual_seed(0)
    data = [(torch.arange(6),)]
    prepared = prepared_of(Tied(), weights(implicit=False), data)
    before = {name for name, _ in tq.convert_pt2e(prepared).named_buffers()}
    rounded = tq.recovery.round_weights(prepared, data)
    (step,) = tq.recovery.steps_of(rounded)
    assert len(before) == 3
    assert step.left == (("embedding", "a lookup sums no products, so the nearest integers are the best"),)


def test_inputs_are_those_of_the_quantized_model() -> None:
    """Activations are rounded, and a layer of a later pass reads what the rounded layers before it return."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False))
    data = batches(20, 8)
    coarse = tq.QuantizationSpec("int8", -4, 3)
    prepared = prepared_of(model, weights(activation=coarse), data)
    rounded = tq.recovery.round_weights(prepared, data, passes=2)
    gains = tq.recovery.steps_of(rounded)[0].gain
    converted = tq.convert_pt2e(rounded)
    for gain, layer, node in zip(gains, (model[0], model[2]), calls(converted, "linear"), strict=True):
        read: list[Any] = []

        def keep(x: torch.Tensor, kept: list[Any] = read) -> torch.Tensor:
            kept.append(x)
            return x

        with converted.graph.inserting_before(node):
            node.replace_input_with(node.args[0], converted.graph.call_function(keep, (node.args[0],)))
        converted.recompile()
        for batch in data:
            converted(*batch)
        x = torch.cat(read)
        expected = x @ layer.weight.detach().T
        rounded_weight = dequantized_weight(converted, node)
        error = (x @ rounded_weight.T - expected).double().square().sum() / expected.double().square().sum()
        assert gain.after == pytest.approx(float(error), rel=1e-3)


def dequantized_weight(model: GraphModule, node: Node) -> torch.Tensor:
    """The weight that a linear of a converted model reads."""
    read = node.args[1]
    assert isinstance(read, Node)
    found: torch.Tensor = read.target(
        *torch.fx.map_arg(read.args, lambda source: getattr_path(model, str(source.target)))
    )
    return found


def getattr_path(model: Any, path: str) -> Any:
    """An attribute by its dotted path."""
    for name in path.split("."):
        model = getattr(model, name)
    return model


@pytest.mark.parametrize("make", [Branches, Rows], ids=["cond", "map"])
def test_layers_in_control_flow_are_rounded_as_far_as_batches_reach_them(make: Any) -> None:
    """A branch that no batch takes is left, with the reason."""
    torch.manual_seed(0)
    data = [(normal(4, 8, seed=seed).abs(),) for seed in range(2)]
    rounded = tq.recovery.round_weights(prepared_of(make(8), weights(), data), data)
    (step,) = tq.recovery.steps_of(rounded)
    assert len(step.applied) == 1
    assert [reason for _, reason in step.left] == (
        ["no batch reached it, or with zeros alone"] if make is Branches else []
    )
    chosen = [point.chosen.integers for point in points(rounded) if point.chosen is not None]
    converted = tq.convert_pt2e(rounded)
    stored = [each for each in integers(converted) if any(torch.equal(each, one) for one in chosen)]
    assert len(chosen) == len(stored) == 1


def test_nan_in_the_inputs_of_a_layer_leaves_it() -> None:
    """The other layers are rounded."""
    torch.manual_seed(0)
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    model = Fn(lambda m, x: (m.first(x), m.second(x.log())), first=first, second=second)
    data = batches(5, 8)
    rounded = tq.recovery.round_weights(prepared_of(model, weights(), data), data)
    (step,) = tq.recovery.steps_of(rounded)
    assert step.applied == ("linear",)
    assert step.left == (("linear_1", "its inputs have elements that are NaN or infinite"),)


def test_a_layer_whose_weight_shares_parameters_with_another_is_left() -> None:
    """Integers for each of them could not have one scale."""

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        if "linear" not in str(node.target):
            return None
        first = one_linear(node)
        spec: Any = per_tensor(0) if node is first else tq.SharedQuantizationSpec((first.args[1], first))
        return tq.QuantizationAnnotation({node.args[1]: spec}, quantizer="shared")

    def one_linear(node: Node) -> Any:
        return next(one for one in node.graph.nodes if "linear" in str(one.target))

    data = batches(5, 8)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    rounded = tq.recovery.round_weights(prepared_of(model, ByFunction(decide), data), data)
    (step,) = tq.recovery.steps_of(rounded)
    assert step.applied == ()
    assert {reason for _, reason in step.left} == {"its weight shares its parameters with others"}


def test_a_transposed_convolution_is_left() -> None:
    """With a reason that names the operator."""
    data = [(normal(2, 4, 5, 5),)]
    rounded = tq.recovery.round_weights(prepared_of(nn.ConvTranspose2d(4, 6, 3), weights(), data), data)
    ((_, reason),) = tq.recovery.steps_of(rounded)[0].left
    assert reason.startswith("aten.conv_transpose2d.input reads it")


def test_integers_go_with_the_state_of_a_prepared_model() -> None:
    """A model that is prepared anew takes them from a file, and converts to the same."""
    torch.manual_seed(0)
    model, data = nn.Linear(8, 6), batches(5, 8)
    quantizer = weights(per_group, activation=INT8)
    rounded = tq.recovery.round_weights(prepared_of(model, quantizer, data), data)
    file = io.BytesIO()
    torch.save(rounded.state_dict(), file)
    file.seek(0)
    other = tq.prepare_pt2e(export(model, *data[0]), quantizer)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(tq.convert_pt2e(other)(*data[0]), tq.convert_pt2e(rounded)(*data[0]))


def test_what_convert_raises_has_the_nearest_integers() -> None:
    """A channel with a large bias gets a larger scale at convert. Integers for another would be wrong."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 6)
    with torch.no_grad():
        layer.weight[2] *= 1e-3
        layer.bias[2] = 5e4
    data = batches(20, 8)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepared_of(layer, quantizer, data)
    rounded = tq.recovery.round_weights(prepared, data)
    plain, found = tq.convert_pt2e(prepared), tq.convert_pt2e(rounded)
    (point,) = points(rounded)
    (before,), (after,) = integers(plain), integers(found)
    assert point.chosen is not None
    assert torch.equal(before[2], after[2])
    others = [0, 1, 3, 4, 5]
    assert torch.equal(after[others], point.chosen.integers[others])
    assert "scale_raised" in {one.code for one in tq.ledger_of(found).warnings}
    assert len(tq.recovery.steps_of(found)[0].applied) == 1


class Counting(nn.Module):
    """A linear of what all calls so far have brought, which it keeps in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 6)
        self.register_buffer("total", torch.zeros(5, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Write to the buffer, and read it."""
        self.total.add_(x)
        return self.fc(self.total)


def test_buffers_of_the_model_stay_as_they_were() -> None:
    """Those that it writes to, before and after."""
    torch.manual_seed(0)
    data = batches(5, 8)
    prepared = prepared_of(Counting(), weights(), data)
    with unharmed(prepared):
        rounded = tq.recovery.round_weights(prepared, data)
    assert float(tq.convert_pt2e(rounded).total.abs().sum()) == 0.0


@pytest.mark.parametrize(
    "setting",
    [{"method": "best"}, {"damping": 0.0}, {"steps": 0}, {"passes": 0}],
    ids=lambda one: next(iter(one)),
)
def test_settings_that_are_none_are_refused(setting: Any) -> None:
    """The error says what would have been taken."""
    data = batches(5, 8)
    prepared = prepared_of(nn.Linear(8, 6), weights(), data)
    with pytest.raises(tq.errors.AccuracyError) as caught:
        tq.recovery.round_weights(prepared, data, **setting)
    assert caught.value.expected
    assert str(next(iter(setting.values()))) in str(caught.value.got)


@pytest.mark.parametrize("model", [nn.Linear(8, 6), nn.Flatten()], ids=["with a weight", "without"])
def test_without_batches_nothing_is_rounded(model: nn.Module) -> None:
    """An empty iterable is an error, and so is a model that is not prepared."""
    prepared = prepared_of(model, weights(), batches(5, 8))
    with pytest.raises(tq.errors.AccuracyError, match="no batch"):
        tq.recovery.round_weights(prepared, [])
    with pytest.raises(tq.ModelError, match="Only a prepared model"):
        tq.recovery.round_weights(tq.convert_pt2e(prepared), batches(5, 8))


def test_training_begins_with_the_float_weights() -> None:
    """The weights of the copy are those of the model, and so is what it computes before convert."""
    torch.manual_seed(0)
    model, data = nn.Linear(8, 6), batches(5, 8)
    prepared = prepared_of(model, weights(), data)
    rounded = tq.recovery.round_weights(prepared, data)
    assert torch.equal(rounded(*data[0]), prepared(*data[0]))
    assert one_call(rounded, "linear").args[1].op == "call_module"
