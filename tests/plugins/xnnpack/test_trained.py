"""Training for XNNPACK: from calibrated ranges it begins where calibration ends, and converts exactly."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

import torchquilt as tq
from plugins.oracle import Model, describe
from plugins.xnnpack.models import SAME
from strategies import Fn, export, normal
from torchquilt_xnnpack import XNNPACKQuantizer
from trained import differences, distances, train, values_of

# A model of which nothing is to be quantized is what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:Something was asked for in this model")

STATIC = "static_int8_per_channel"
PRESETS = (
    STATIC,
    "static_int8",
    "static_int8_weight_int4",
    "dynamic_int8",
    "dynamic_int8_weight_int4_group32",
)
#: Each way to read and to write a tensor, and each way to fold a BatchNorm; the others take long.
SOME = (
    "linear relu",
    "linear bn",
    "perceptron with dropout",
    "shared linear",
    "attention",
    "embedding in float",
    "conv bn without affine",
    "conv bn relu",
    "depthwise separable",
    "residual block",
    "two branches",
    "cat of convs",
    "average-pool head",
)
some_models = pytest.mark.parametrize("name", SOME)
ways = pytest.mark.parametrize("way", ["moving_average", "moving_average:0.5", "learned"])


def model_of(name: str) -> Model:
    """A model, the same each time."""
    torch.manual_seed(0)
    return SAME[name]()


def wide() -> Model:
    """Linears with rows that divide into groups of 32."""
    torch.manual_seed(0)
    return Model(nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 8)), (normal(4, 64),))


def calibrated(
    exported: ExportedProgram, inputs: tuple[Any, ...], preset: str, observer: str = "minmax"
) -> GraphModule:
    """Prepared for calibration, and calibrated with its inputs."""
    quantizer = XNNPACKQuantizer.from_preset(preset)
    prepared = tq.prepare_pt2e(exported, quantizer, activation_observer=observer, strict=False)
    return tq.calibrate(prepared, [inputs])


def begun(
    exported: ExportedProgram, preset: str, ranges: GraphModule | tq.Calibration, way: str
) -> GraphModule:
    """Prepared for training, with ranges of a calibration."""
    return tq.prepare_qat_pt2e(
        exported,
        XNNPACKQuantizer.from_preset(preset),
        fake_quantize=way,
        ranges_from=ranges,
        strict=False,
    )


def assert_no_step_is_calibration(model: Model, preset: str, way: str, observer: str = "minmax") -> None:
    """No step of training from calibrated ranges: the graph and the bits of the calibrated model."""
    exported = export(model.module, *model.inputs)
    ranges = calibrated(exported, model.inputs, preset, observer)
    expected = tq.convert_pt2e(ranges)
    trained = begun(exported, preset, ranges, way).eval()
    found = tq.convert_pt2e(trained)

    assert describe(found) == describe(expected)
    outputs = values_of(expected, model.inputs)
    assert distances(outputs, values_of(trained, model.inputs)) == [0.0] * len(outputs)
    assert distances(outputs, values_of(found, model.inputs)) == [0.0] * len(outputs)


@some_models
def test_no_step_from_calibrated_ranges_is_calibration(name: str) -> None:
    """Evaluation and the converted model are those of calibration, bit for bit."""
    assert_no_step_is_calibration(model_of(name), STATIC, "moving_average")


@pytest.mark.parametrize(
    ("observer", "way"),
    [
        ("histogram", "moving_average:0.5"),
        ("histogram", "learned"),
        ("percentile:99", "moving_average"),
        ("moving_average", "moving_average"),
    ],
)
def test_no_step_is_calibration_whatever_observed_and_however_it_goes_on(observer: str, way: str) -> None:
    """The parameters that an observer chose are taken, not only its range."""
    assert_no_step_is_calibration(model_of("residual block"), STATIC, way, observer)


@pytest.mark.parametrize("way", ["moving_average", "learned"])
@pytest.mark.parametrize("preset", [*XNNPACKQuantizer.PRESETS])
def test_no_step_is_calibration_for_each_preset(preset: str, way: str) -> None:
    """Static and dynamic, per tensor, per channel and in groups of 4-bit weights."""
    assert_no_step_is_calibration(wide(), preset, way)


@pytest.mark.long
@ways
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", SAME)
def test_no_step_is_calibration_for_each_model(name: str, preset: str, way: str) -> None:
    """All models on which we and the oracle agree."""
    assert_no_step_is_calibration(model_of(name), preset, way)


@pytest.mark.parametrize("training", [True, False], ids=["in training", "in evaluation"])
@pytest.mark.parametrize("observer", ["minmax", "histogram"])
@pytest.mark.parametrize("way", ["moving_average", "learned"])
def test_ranges_come_from_calibrations_of_several_processes(
    tmp_path: Path, way: str, observer: str, training: bool
) -> None:
    """A merged calibration is as good as the calibrated model that one process makes of all the data."""
    model = model_of("conv bn relu")
    exported = export(model.module, *model.inputs)
    batches = [(normal(2, 3, 6, 6, seed=seed),) for seed in range(4)]
    quantizer = XNNPACKQuantizer.from_preset(STATIC)
    paths = [tmp_path / "one", tmp_path / "two"]
    for path, shard in zip(paths, (batches[:2], batches[2:]), strict=True):
        prepared = tq.prepare_pt2e(exported, quantizer, activation_observer=observer)
        tq.calibrate(prepared, shard, checkpoint=path)
    whole = tq.prepare_pt2e(exported, quantizer, activation_observer=observer)
    expected = tq.convert_pt2e(tq.calibrate(whole, batches))

    trainable = torch.export.export(model.module.train(training), model.inputs)
    trained = begun(trainable, STATIC, tq.merge_calibration(paths), way)
    assert describe(tq.convert_pt2e(trained)) == describe(expected)
    (output,) = values_of(expected, batches[0])
    assert distances([output], values_of(trained.eval(), batches[0])) == [0.0]


def test_ranges_of_another_preset_are_refused() -> None:
    """Those of a graph with other specs say nothing."""
    model = model_of("conv bn relu")
    exported = export(model.module, *model.inputs)
    other = calibrated(exported, model.inputs, "static_int8_weight_int4")
    with pytest.raises(tq.errors.TorchquiltError):
        begun(exported, STATIC, tq.convert_pt2e(other), "learned")
    unfitting = calibrated(export(wide().module, *wide().inputs), wide().inputs, STATIC)
    with pytest.raises(tq.errors.CalibrationError) as caught:
        begun(exported, STATIC, unfitting, "moving_average")
    assert "other decisions" in str(caught.value)


def test_a_calibration_with_observers_without_a_name_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """A calibration does not say its observers; the calibrated model does, and is taken."""
    model = model_of("conv bn relu")
    exported = export(model.module, *model.inputs)
    quantizer = XNNPACKQuantizer.from_preset(STATIC)
    prepared = tq.prepare_pt2e(exported, quantizer, activation_observer="percentile:98")
    tq.calibrate(prepared, [model.inputs], checkpoint=tmp_path / "one")
    found = tq.merge_calibration([tmp_path / "one"])
    with pytest.raises(tq.errors.CalibrationError) as caught:
        begun(exported, STATIC, found, "moving_average")
    assert "calibrate(prepare_pt2e" in str(caught.value)
    trained = begun(exported, STATIC, prepared, "moving_average").eval()
    expected = values_of(tq.convert_pt2e(prepared), model.inputs)
    assert distances(expected, values_of(trained, model.inputs)) == [0.0]


# --- Trained ------------------------------------------------------------------------------------------------


def assert_trained_is_converted(model: Model, preset: str, way: str, *, training: bool) -> None:
    """After two steps evaluation is the converted model, bit for bit."""
    exported = torch.export.export(model.module.train(training), model.inputs)
    quantizer = XNNPACKQuantizer.from_preset(preset)
    trained = tq.prepare_qat_pt2e(exported, quantizer, fake_quantize=way, strict=False)
    train(trained, [model.inputs] * 2)
    found = differences(trained, model.inputs)
    assert found == [0.0] * len(found)


@pytest.mark.parametrize("way", ["moving_average", "learned"])
@pytest.mark.parametrize("name", SOME[::2])
def test_what_was_trained_is_what_is_converted(name: str, way: str) -> None:
    """Exported in training mode, and trained for two steps."""
    assert_trained_is_converted(model_of(name), STATIC, way, training=True)


@pytest.mark.parametrize("way", ["moving_average", "learned"])
@pytest.mark.parametrize("preset", [*XNNPACKQuantizer.PRESETS])
def test_each_preset_trains_and_converts(preset: str, way: str) -> None:
    """Dynamic activations and 4-bit weights train, too."""
    assert_trained_is_converted(wide(), preset, way, training=False)


@pytest.mark.parametrize("way", ["moving_average", "learned"])
def test_evaluation_adds_the_biases_that_are_stored(way: str) -> None:
    """If a step of the accumulator shows in the output, convert rounds the bias, and so does evaluation.

    Again after each step, in a copy as well, and where a state was loaded in evaluation mode.
    """
    model = model_of("linear relu")
    exported = export(model.module, *model.inputs)
    quantizer = XNNPACKQuantizer.from_preset("static_int8_weight_int4")
    trained, other = (tq.prepare_qat_pt2e(exported, quantizer, fake_quantize=way) for _ in range(2))
    train(trained, [model.inputs] * 2)
    assert differences(trained, model.inputs) == [0.0]
    stored = {key for key in tq.convert_pt2e(trained).state_dict() if key.endswith("_settled")}
    assert stored, "no bias is rounded here, so this shows nothing"
    copied = copy.deepcopy(trained)
    for one in (copied, trained):
        train(one, [model.inputs])
        assert differences(one, model.inputs) == [0.0]
    train(other, [model.inputs])
    other.eval()(*model.inputs)
    other.load_state_dict(trained.state_dict())
    assert differences(other, model.inputs) == [0.0]


def cancelling() -> Model:
    """A linear whose products are large and cancel, but not where they are rounded."""
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.9955], [1.0, 0.9955]]))
    value = torch.linspace(-1e4, 1e4, 9)
    return Model(model, (torch.stack([value, -value / 0.9955], 1),))


def test_evaluation_computes_with_the_scales_that_are_raised() -> None:
    """A scale of the output that is too small for the kernel is raised by convert, and in evaluation."""
    model = cancelling()
    exported = export(model.module, *model.inputs)
    ranges = calibrated(exported, model.inputs, STATIC)
    trained = begun(exported, STATIC, ranges, "moving_average")
    assert differences(trained, model.inputs) == [0.0]
    ledger = tq.ledger_of(tq.convert_pt2e(trained))
    assert {caution.code for caution in ledger.warnings} == {"scale_raised"}


def test_evaluation_keeps_tensors_in_memory_as_the_converted_model_does() -> None:
    """A part of a rounded tensor is rounded again after convert, which is what makes it contiguous.

    The float operator behind it returns other bits for one that is not.
    """
    torch.manual_seed(0)
    module = Fn(lambda m, x: nn.functional.gelu(m.conv(x)[:, :, :-1]), conv=nn.Conv1d(4, 32, 3))
    inputs = (normal(2, 4, 42),)
    trained = tq.prepare_qat_pt2e(export(module, *inputs), XNNPACKQuantizer.from_preset(STATIC))
    train(trained, [inputs])
    assert differences(trained, inputs) == [0.0]


def test_a_step_in_evaluation_has_no_gradients_missing() -> None:
    """Scales and biases that are settled for kernels hide no gradients."""
    model = model_of("linear relu")
    quantizer = XNNPACKQuantizer.from_preset("static_int8_weight_int4")
    trained = tq.prepare_qat_pt2e(export(model.module, *model.inputs), quantizer)
    train(trained, [model.inputs] * 2).eval()
    trained.zero_grad()
    trained(*model.inputs).sum().backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())
    assert bool(trained.get_parameter("0.bias").grad.any())


#: Models with something to train.
TRAINED = [name for name, make in SAME.items() if any(True for _ in make().module.parameters())]


@pytest.mark.long
@pytest.mark.parametrize("training", [True, False], ids=["in training", "in evaluation"])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", TRAINED)
def test_each_model_trains_and_converts(name: str, preset: str, training: bool) -> None:
    """All models on which we and the oracle agree, and that have parameters."""
    assert_trained_is_converted(model_of(name), preset, "moving_average", training=training)
