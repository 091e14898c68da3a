"""Bias correction: the mean error of a channel is taken out of its bias, on a copy of the prepared model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import torchquilt as tq
from planted import noise, seeded, static
from strategies import Fn, calls, export, normal, outputs_of
from torchquilt.graph.invariants import checking_invariants

#: A scale for all of a weight, so that its small rows are rounded roughly.
COARSE = tq.QuantizationConfig(
    input_activation=tq.QuantizationSpec("int8"),
    output_activation=tq.QuantizationSpec("int8"),
    weight=tq.QuantizationSpec("int8", -127, 127, symmetric=True),
)


def skewed(*, bias: bool = True) -> nn.Module:
    """Three linears whose inputs have a mean, with one wide weight each."""
    width = 16
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(width, width, bias=bias), nn.ReLU()]
    model = seeded(nn.Sequential(*layers[:-1]))
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight[0, 0] = 40 * layer.weight.abs().max()
    return model


def batches(count: int = 8, seed: int = 0) -> list[tuple[torch.Tensor, ...]]:
    """Numbers around 1."""
    return [(normal(16, 16, seed=seed + number) / 4 + 1,) for number in range(count)]


def prepared(model: nn.Module, data: Any) -> Any:
    """Prepared with one scale for each weight, and calibrated."""
    from torchquilt_xnnpack import XNNPACKQuantizer

    quantizer = XNNPACKQuantizer().set_global(COARSE)
    return tq.calibrate(tq.prepare_pt2e(export(model, *data[0]), quantizer), data)


@pytest.mark.parametrize("bias", [True, False])
def test_a_mean_error_is_taken_out(bias: bool) -> None:
    """On data that it has not seen, the model gains 3 dB and more; one without biases gets some."""
    model = skewed(bias=bias)
    calibrated = prepared(model, batches())
    with checking_invariants():
        corrected = tq.recovery.correct_biases(calibrated, batches())
    before, after = (
        noise(model, tq.convert_pt2e(each), batches(seed=100)) for each in (calibrated, corrected)
    )
    (step,) = tq.recovery.steps_of(corrected)
    assert step.applied == ("linear", "linear_1", "linear_2")
    assert all(gain.after < gain.before for gain in step.gain)
    assert after > before + 3


def test_the_first_shift_is_the_mean_error() -> None:
    """Against a plain computation: with so many samples nothing is taken for chance."""
    model = seeded(nn.Sequential(nn.Linear(16, 4)))
    with torch.no_grad():
        model[0].weight[0, 0] = 300
    data = [(normal(4096, 16) / 100 + 1,)]
    calibrated = prepared(model, data)
    corrected = tq.recovery.correct_biases(calibrated, data)
    shift = corrected.state_dict()["0.bias"] - calibrated.state_dict()["0.bias"]
    weight = model[0].weight.detach()
    scale = weight.abs().max() / 127
    error = data[0][0] @ (torch.round(weight / scale) * scale - weight).T
    torch.testing.assert_close(shift[1:], -error.mean(0)[1:], rtol=0.02, atol=2e-3)


def test_a_mean_by_chance_is_left_alone() -> None:
    """If samples disagree about the error, their mean is not subtracted."""
    model = seeded(nn.Sequential(nn.Linear(16, 64)))
    data = [(normal(4, 16),)]
    calibrated = prepared(model, data)
    shift = (
        tq.recovery.correct_biases(calibrated, data).state_dict()["0.bias"]
        - calibrated.state_dict()["0.bias"]
    )
    assert 0 < int((shift == 0).sum()) < 64


def test_the_calibration_is_kept_and_the_original_is_left_alone() -> None:
    """The same ranges in both, no batch is observed once more, and the biases of the original stay."""
    calibrated = prepared(skewed(), batches())
    before = {
        name: value.clone() for name, value in calibrated.state_dict().items() if hasattr(value, "clone")
    }
    seen = tq.calibration_of(calibrated)
    corrected = tq.recovery.correct_biases(calibrated, batches())
    assert str(tq.calibration_of(corrected)) == str(seen) == str(tq.calibration_of(calibrated))
    assert all(torch.equal(value, calibrated.state_dict()[name]) for name, value in before.items())
    assert not torch.equal(corrected.state_dict()["2.bias"], before["2.bias"])


def test_convolutions_and_shared_biases() -> None:
    """Two convolutions that share a bias get one each; a depthwise one and a transposed one are corrected."""
    model = Fn(
        lambda m, x: m.up(m.depthwise(torch.relu(m.a(x)) + torch.relu(m.b(x)))),
        a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 4, 3), depthwise=nn.Conv2d(4, 4, 3, groups=4),
        up=nn.ConvTranspose2d(4, 2, 2),
    )  # fmt: skip
    model.b.bias = model.a.bias
    data = [(normal(4, 3, 8, 8, seed=seed) + 1,) for seed in range(4)]
    calibrated = tq.calibrate(tq.prepare_pt2e(export(seeded(model), *data[0]), static()), data)
    with checking_invariants():
        corrected = tq.recovery.correct_biases(calibrated, data)
        converted = tq.convert_pt2e(corrected)
    assert len(tq.recovery.steps_of(corrected)[0].applied) == 4
    first, second = (node.args[2].target for node in calls(corrected, "conv2d")[:2])
    assert first != second
    assert noise(model, converted, data) >= noise(model, tq.convert_pt2e(calibrated), data)


def test_what_is_left_alone_says_why() -> None:
    """An operator in float, and one in a subgraph."""

    def branches(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = torch.cond(x.sum() > 0, lambda x: m.a(x), lambda x: m.a(x) * 2, (x,))
        return m.b(x)

    model = Fn(branches, a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    data = [(normal(8, 4).abs(),), (-normal(8, 4).abs(),)]
    quantizer = outputs_of("tanh")
    calibrated = tq.calibrate(tq.prepare_pt2e(export(model, *data[0]), quantizer, strict=False), data)
    (step,) = tq.recovery.steps_of(tq.recovery.correct_biases(calibrated, data))
    assert dict(step.left)["linear"] == "it is not quantized"
    assert {reason for name, reason in step.left if "." in name} == {"it is in a subgraph"}


def test_each_batch_begins_with_the_state_of_the_model() -> None:
    """A counter that the model writes to is that of the start in both models, and is left so."""

    def counted(m: Any, x: torch.Tensor) -> torch.Tensor:
        m.count.add_(1)
        return m.a(x * m.count)

    data = [(normal(8, 4) + 1,)] * 3
    model = Fn(counted, a=nn.Linear(4, 4), count=torch.zeros(()))
    calibrated = tq.calibrate(tq.prepare_pt2e(export(model, *data[0]), static()), data)
    corrected = tq.recovery.correct_biases(calibrated, data)
    assert float(tq.convert_pt2e(corrected).state_dict()["count"]) == 0
    assert float(calibrated.state_dict()["count"]) == 3


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: export(skewed(), *batches(1)[0]).module(), tq.ModelError, "Only a calibrated model"),
        (lambda: tq.convert_pt2e(prepared(skewed(), batches(1))), tq.ModelError, "Only a calibrated model"),
        (
            lambda: tq.prepare_pt2e(export(skewed(), *batches(1)[0]), static()),
            tq.CalibrationError,
            "no data|nothing|never",
        ),
    ],
)
def test_only_a_calibrated_model_is_taken(make: Any, error: Any, text: str) -> None:
    """A float model, a converted one, and one that has seen no data are refused."""
    with pytest.raises(error, match=text):
        tq.recovery.correct_biases(make(), batches(1))


def test_no_batch_is_refused() -> None:
    """There is nothing to measure with."""
    with pytest.raises(tq.AccuracyError, match="There was no batch"):
        tq.recovery.correct_biases(prepared(skewed(), batches(1)), [])
