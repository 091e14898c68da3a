"""Choice of ranges: the errors that are told are those of the readers, and convert takes what was chosen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from control_flow import Branches
from strategies import INT8, ByFunction, Fn, calls, export, normal, outputs_of
from torchquilt.observers import qparams_of_range
from torchquilt.pt2e.observer_points import ObservedPoint
from unharmed import unharmed

MEASURE = "output error of what reads it, relative (MSE)"


def inputs_of(part: str, spec: Any = INT8) -> ByFunction:
    """Quantizes what the operators of a name read first, and nothing else."""

    def decide(node: Any) -> tq.QuantizationAnnotation | None:
        if node.op != "call_function" or part not in str(node.target):
            return None
        return tq.QuantizationAnnotation({node.args[0]: spec}, quantizer="inputs")

    return ByFunction(decide)


def prepared_of(model: nn.Module, quantizer: Any, data: list[Any], **options: Any) -> GraphModule:
    """Exported, prepared and calibrated."""
    return tq.calibrate(tq.prepare_pt2e(export(model, *data[0]), quantizer, **options), data)


def point_of(model: GraphModule) -> ObservedPoint:
    """The only point that observes."""
    (point,) = (module for module in model.modules() if isinstance(module, ObservedPoint))
    return point


def blind_linear() -> nn.Linear:
    """A linear that does not read its last input."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 6, bias=False)
    with torch.no_grad():
        layer.weight[:, -1] = 0.0
    return layer


def with_outliers(number: int = 3) -> list[tuple[torch.Tensor]]:
    """Inputs whose last element is 50 times as large as the others."""
    return [(normal(40, 8, seed=seed) * torch.tensor([1.0] * 7 + [50.0]),) for seed in range(number)]


def brute_force(model: Any, data: list[Any], low: float, high: float, spec: Any = INT8) -> float:
    """Relative error of a model's output with its input rounded in a range."""
    scale, zero_point = qparams_of_range(torch.tensor(low), torch.tensor(high), spec)
    noise = signal = 0.0
    with torch.no_grad():
        for (x,) in data:
            integers = (x / scale).round().add(zero_point).clamp(spec.quant_min, spec.quant_max)
            expected = model(x)
            noise += float((model((integers - zero_point) * scale) - expected).double().square().sum())
            signal += float(expected.double().square().sum())
    return noise / signal


@pytest.mark.parametrize("observer", ["histogram", "minmax", "percentile:99.9"])
def test_outliers_that_no_reader_reads_are_cut_off(observer: str) -> None:
    """Their error is large, and that of the layer's output is none. The converted model has that range."""
    model, data = blind_linear(), with_outliers()
    prepared = prepared_of(model, inputs_of("linear"), data, activation_observer=observer)
    with unharmed(prepared):
        found = tq.recovery.choose_ranges(prepared, data)
    (step,) = tq.recovery.steps_of(found)
    (gain,) = step.gain
    assert gain.measure == MEASURE
    before, after = point_of(prepared).range(), point_of(found).range()
    assert gain.before == pytest.approx(brute_force(model, data, *map(float, before)), rel=1e-3)
    assert gain.after == pytest.approx(brute_force(model, data, *map(float, after)), rel=1e-3)
    assert gain.after < 0.5 * gain.before
    scale, zero_point = qparams_of_range(*after, INT8)
    (quantize,) = calls(tq.convert_pt2e(found), ".quantize_per_tensor")
    assert quantize.args[1:3] == (pytest.approx(float(scale)), int(zero_point))


def test_a_range_is_kept_where_no_other_is_better() -> None:
    """For a tensor that is returned the range of calibration is the best."""
    data = [(normal(200, 8, seed=seed),) for seed in range(3)]
    prepared = prepared_of(nn.ReLU(), outputs_of("relu"), data)
    found = tq.recovery.choose_ranges(prepared, data)
    (step,) = tq.recovery.steps_of(found)
    assert step.left == (("relu", "the range that it has makes the smallest error"),)
    assert point_of(found).chosen is None
    assert torch.equal(tq.convert_pt2e(found)(*data[0]), tq.convert_pt2e(prepared)(*data[0]))


def test_all_readers_count() -> None:
    """A second operator that reads the outliers alone keeps them in the range."""
    layer, data = blind_linear(), with_outliers()
    model = Fn(lambda m, x: (m.fc(x), torch.relu(x)), fc=layer)

    def decide(node: Any) -> tq.QuantizationAnnotation | None:
        read = any(part in str(node.target) for part in ("linear", "relu"))
        return tq.QuantizationAnnotation({node.args[0]: INT8}, quantizer="both") if read else None

    prepared = prepared_of(model, ByFunction(decide), data, activation_observer="minmax")
    found = tq.recovery.choose_ranges(prepared, data)
    alone = tq.recovery.choose_ranges(
        prepared_of(layer, inputs_of("linear"), data, activation_observer="minmax"), data
    )
    assert float(point_of(found).range()[1]) > 2 * float(point_of(alone).range()[1])


@pytest.mark.parametrize("seed", range(4))
def test_no_range_is_worse_by_its_own_measure(seed: int) -> None:
    """Some networks of several layers, with 4 bits and inputs of heavy tails."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Sigmoid()
    )
    data = [(normal(2, 3, 8, 8, seed=seed).exp(),)]
    quantizer = outputs_of("conv2d", "relu", "flatten", "sigmoid", spec=tq.QuantizationSpec("int8", -8, 7))
    found = tq.recovery.choose_ranges(prepared_of(model, quantizer, data), data)
    (step,) = tq.recovery.steps_of(found)
    assert all(gain.after < gain.before for gain in step.gain)
    assert len(step.gain) + len(step.left) == sum(isinstance(one, ObservedPoint) for one in found.modules())


def test_a_range_for_each_channel_shrinks_with_the_others() -> None:
    """Parameters per axis, whose observer keeps the smallest and largest values alone."""
    data = [(normal(400, 8, seed=seed),) for seed in range(2)]
    spec = tq.QuantizationSpec("int8", -2, 1, "per_axis", ch_axis=1)
    found = tq.recovery.choose_ranges(prepared_of(blind_linear(), inputs_of("linear", spec), data), data)
    low, high = point_of(found).range()
    assert low.shape == high.shape == (8,)
    assert len(tq.recovery.steps_of(found)[0].applied) == 1
    tq.convert_pt2e(found)(*data[0])


def test_values_that_a_mask_was_added_to_do_not_count() -> None:
    """The sum with a mask is mostly the mask; what is read is judged by the others."""
    mask = torch.zeros(8)
    mask[:4] = torch.finfo(torch.float32).min
    data = [(normal(50, 8, seed=seed),) for seed in range(2)]
    prepared = prepared_of(Fn(lambda m, x: x + m.mask, mask=mask), inputs_of("add"), data)
    step = tq.recovery.steps_of(tq.recovery.choose_ranges(prepared, data))[0]
    told = [gain.before for gain in step.gain]
    assert step.left or told[0] > 1e-9


def test_a_branch_that_no_batch_takes_is_left() -> None:
    """Calibration has not seen it, so there is nothing to choose among; the other one is looked at."""
    data = [(normal(4, 8, seed=seed).abs(),) for seed in range(2)]
    prepared = prepared_of(Branches(8), inputs_of("linear"), data)
    step = tq.recovery.steps_of(tq.recovery.choose_ranges(prepared, data))[0]
    assert "calibration never reached it" in {reason for _, reason in step.left}
    assert len(step.left) + len(step.applied) == 2


def test_nan_leaves_a_range_as_it_is() -> None:
    """Elements that are NaN in float tell nothing of a range; where all of them are, nothing is chosen."""
    data = [(torch.full((4, 8), torch.nan),)]
    prepared = tq.prepare_pt2e(export(nn.Linear(8, 6), *data[0]), inputs_of("linear"))
    tq.calibrate(prepared, [(normal(4, 8),)])
    step = tq.recovery.steps_of(tq.recovery.choose_ranges(prepared, data))[0]
    assert [reason for _, reason in step.left] == ["no batch reached it, or with zeros alone"]


def test_no_batches_and_no_prepared_model_are_refused() -> None:
    """No batches, and a model that is not prepared."""
    data = with_outliers()
    prepared = prepared_of(blind_linear(), inputs_of("linear"), data)
    with pytest.raises(tq.errors.AccuracyError, match="no batch"):
        tq.recovery.choose_ranges(prepared, [])
    with pytest.raises(tq.ModelError, match="Only a calibrated model"):
        tq.recovery.choose_ranges(tq.convert_pt2e(prepared), data)


def test_ranges_and_weights_are_chosen_one_after_the_other() -> None:
    """Both go with the model, and are what convert takes."""
    spec = tq.QuantizationSpec("int8", -8, 7, "per_axis", ch_axis=0, symmetric=True)

    def decide(node: Any) -> tq.QuantizationAnnotation | None:
        if "linear" not in str(node.target):
            return None
        return tq.QuantizationAnnotation({node.args[0]: INT8, node.args[1]: spec}, quantizer="linears")

    model, data = blind_linear(), with_outliers()
    prepared = prepared_of(model, ByFunction(decide), data)
    found = tq.recovery.round_weights(tq.recovery.choose_ranges(prepared, data), data)
    assert [step.name for step in tq.recovery.steps_of(found)] == ["choose_ranges", "round_weights"]
    assert any(point.chosen for point in found.modules() if isinstance(point, ObservedPoint))
    plain, better = tq.convert_pt2e(prepared), tq.convert_pt2e(found)
    with torch.no_grad():
        errors = [
            sum(float((each(x) - model(x)).square().sum()) for (x,) in data) for each in (plain, better)
        ]
    assert errors[1] < 0.5 * errors[0]
