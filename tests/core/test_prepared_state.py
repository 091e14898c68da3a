"""The state dict of a prepared model: what it saw goes with it."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from strategies import export, normal
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

X = normal(8, 6)
OBSERVERS = ["histogram", "minmax", "percentile:99.5", "moving_average"]


def prepared(observer: str = "histogram") -> GraphModule:
    """Two linears, ready to be calibrated."""
    xnnpack = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    return tq.prepare_pt2e(export(model, X), xnnpack, activation_observer=observer)


@pytest.mark.parametrize("observer", OBSERVERS)
def test_a_calibration_goes_with_the_state_dict(observer: str) -> None:
    """Written to a file as plain data and read back, it converts to the same, and can be gone on with."""
    first, second = prepared(observer), prepared(observer)
    first(X)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(tq.convert_pt2e(first)(X), tq.convert_pt2e(second)(X))
    first(5 * X)
    assert not torch.equal(tq.convert_pt2e(first)(X), tq.convert_pt2e(second)(X))  # a copy was loaded
    second(5 * X)
    assert torch.equal(tq.convert_pt2e(first)(X), tq.convert_pt2e(second)(X))


def test_the_state_of_another_observer_is_refused() -> None:
    """The error says of which one it is, and which one is here."""
    first, second = prepared("minmax"), prepared("percentile:99.5")
    first(X)
    with pytest.raises(tq.CalibrationError, match="another observer") as caught:
        second.load_state_dict(first.state_dict())
    assert "MinMaxObserver" in str(caught.value.got)
    assert "PercentileObserver" in str(caught.value.expected)


def test_a_state_dict_without_calibration_is_not_taken_for_one() -> None:
    """That of the float model lacks what was seen, which torch says."""
    with pytest.raises(RuntimeError, match="Missing key"):
        prepared().load_state_dict(export(nn.Sequential(nn.Linear(6, 6)), X).module().state_dict())
