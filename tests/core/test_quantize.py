"""Tests of the whole flow in one call: export, prepare, calibrate, convert, and the ledger printed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import torchquilt as tq
from strategies import normal
from torchquilt.pt2e.observer_points import observed_points
from torchquilt_xnnpack import XNNPACKQuantizer

STATIC = "xnnpack:static_int8_per_channel"
DYNAMIC = "xnnpack:dynamic_int8_per_channel"
BATCHES = [(normal(4, 6, seed=seed),) for seed in range(3)]


@pytest.fixture
def model() -> nn.Sequential:
    """A model in training, one part of which is frozen in evaluation."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 4)).train()
    made[1].eval()
    return made


def _by_steps(model: nn.Module, quantizer: object) -> torch.nn.Module:
    exported = torch.export.export(model.eval(), BATCHES[0])
    return tq.convert_pt2e(tq.calibrate(tq.prepare_pt2e(exported, quantizer), BATCHES))


def test_it_does_what_the_steps_do(model: nn.Sequential, capsys: pytest.CaptureFixture[str]) -> None:
    """The outcome is bit for bit that of the steps, and what is printed is its ledger."""
    quantized = tq.quantize(model, BATCHES[0], STATIC, BATCHES)
    assert capsys.readouterr().out == f"{tq.ledger_of(quantized)}\n"
    assert len(tq.ledger_of(quantized).quantized) > 0
    x = normal(4, 6, seed=9)
    assert torch.equal(quantized(x), _by_steps(model, STATIC)(x))


def test_the_model_stays_as_it_was(model: nn.Sequential) -> None:
    """Weights, statistics, and the mode of each part."""
    modes = [part.training for part in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    tq.quantize(model, BATCHES[0], STATIC, BATCHES, show=False)
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_mode_comes_back_where_export_fails(model: nn.Sequential) -> None:
    """An error of export is ours, has torch's words, and leaves the mode as it was."""
    modes = [part.training for part in model.modules()]
    with pytest.raises(tq.ModelError, match="cannot export Sequential") as caught:
        tq.quantize(model, (normal(4, 7),), STATIC, BATCHES)
    assert "same reduction dim" in str(caught.value.got)
    assert caught.value.__cause__ is not None
    assert [part.training for part in model.modules()] == modes


def test_a_list_is_composed_in_its_order(model: nn.Sequential) -> None:
    """The first quantizer of a list keeps what it claims."""
    config = XNNPACKQuantizer.PRESETS["dynamic_int8_per_channel"]()
    first = XNNPACKQuantizer().set_module_name("4", config)
    quantized = tq.quantize(model, BATCHES[0], [first, STATIC], BATCHES, show=False)
    composed = tq.ComposableQuantizer([first, STATIC])
    assert torch.equal(quantized(*BATCHES[0]), _by_steps(model, composed)(*BATCHES[0]))
    assert not torch.equal(quantized(*BATCHES[0]), _by_steps(model, STATIC)(*BATCHES[0]))


def test_no_data_is_read_where_none_is_needed(model: nn.Sequential) -> None:
    """Dynamic quantization takes no calibration, and does not read what is given."""

    def refusing() -> Iterator[object]:
        raise AssertionError("read")
        yield

    without = tq.quantize(model, BATCHES[0], DYNAMIC, show=False)
    given = tq.quantize(model, BATCHES[0], DYNAMIC, refusing(), show=False)
    assert torch.equal(without(*BATCHES[0]), given(*BATCHES[0]))


def test_missing_data_is_an_error_that_says_how_much_needs_it(model: nn.Sequential) -> None:
    """Static quantization without batches is refused, and nothing is printed."""
    with pytest.raises(tq.CalibrationError, match="no data") as caught:
        tq.quantize(model, BATCHES[0], STATIC)
    observed = tq.prepare_pt2e(torch.export.export(model.eval(), BATCHES[0]), STATIC)
    number = len(observed_points(observed))
    assert f"{number} activations" in str(caught.value.expected)
    assert caught.value.got == "calibration=None"


def test_keyword_inputs_and_dynamic_shapes() -> None:
    """Inputs may be named, and a dimension stay free."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return self.fc(x) * scale

    torch.manual_seed(0)
    batches = [{"x": normal(4, 6, seed=seed), "scale": normal(4, 1, seed=seed + 5)} for seed in range(3)]
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = {"x": {0: batch}, "scale": {0: batch}}
    quantized = tq.quantize(Scaled(), batches[0], STATIC, batches, dynamic_shapes=shapes, show=False)
    assert quantized(x=normal(7, 6), scale=normal(7, 1)).shape == (7, 4)


def test_an_exported_model_is_taken_as_it_is(model: nn.Sequential) -> None:
    """An ExportedProgram needs no example inputs, and no dynamic shapes may come with it."""
    exported = torch.export.export(model.eval(), BATCHES[0])
    quantized = tq.quantize(exported, None, STATIC, BATCHES, show=False)
    assert torch.equal(quantized(*BATCHES[0]), _by_steps(model, STATIC)(*BATCHES[0]))
    with pytest.raises(tq.ModelError, match="exported already") as caught:
        tq.quantize(exported, None, STATIC, BATCHES, dynamic_shapes=({0: 2},))
    assert "torch.export.export" in str(caught.value.remedy)


@pytest.mark.parametrize("given", [None, "model", nn.Linear])
def test_what_is_no_model_is_refused(given: object) -> None:
    """With an error that shows the call."""
    with pytest.raises(tq.ModelError, match="nothing to export"):
        tq.quantize(given, BATCHES[0], STATIC, BATCHES)  # type: ignore[arg-type]


def test_a_quantized_model_is_refused(model: nn.Sequential) -> None:
    """It would have to be prepared again from the float model."""
    quantized = tq.quantize(model, BATCHES[0], STATIC, BATCHES, show=False)
    with pytest.raises(tq.ModelError, match="converted already"):
        tq.quantize(quantized, None, STATIC, BATCHES)


def test_the_limit_is_that_of_calibrate(model: nn.Sequential) -> None:
    """Only so many batches are read."""
    read = []

    def counted() -> Iterator[object]:
        for batch in BATCHES:
            read.append(1)
            yield batch

    tq.quantize(model, BATCHES[0], STATIC, counted(), limit=2, show=False)
    assert len(read) == 2
