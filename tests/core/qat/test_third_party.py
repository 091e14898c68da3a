"""A backend that knows nothing of training gets it from its table: the example of a third party."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchquilt as tq
from strategies import export, normal
from trained import differences, distances, train, values_of

SOURCE = Path(__file__).parents[3] / "examples/acme_npu/src"
PRESETS = ("int8", "int16", "int16_int4")
INPUTS = (normal(4, 64),)


@pytest.fixture
def acme(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The quantizer of the example, from its source."""
    monkeypatch.syspath_prepend(str(SOURCE))
    from torchquilt_acme_npu.quantizer import AcmeNPUQuantizer

    assert tuple(AcmeNPUQuantizer.PRESETS) == PRESETS
    return AcmeNPUQuantizer


def model() -> nn.Module:
    """Linears with rows that divide into groups of 32."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))


@pytest.mark.parametrize("way", ["moving_average", "learned"])
@pytest.mark.parametrize("preset", PRESETS)
def test_it_begins_where_calibration_ends_and_converts_to_what_was_trained(
    acme: Any, preset: str, way: str
) -> None:
    """No step is calibration, bit for bit; and after two steps evaluation is the converted model."""
    exported, quantizer = export(model(), *INPUTS), acme.from_preset(preset)
    ranges = tq.calibrate(tq.prepare_pt2e(exported, quantizer), [INPUTS])
    expected = values_of(tq.convert_pt2e(ranges), INPUTS)
    trained = tq.prepare_qat_pt2e(exported, quantizer, fake_quantize=way, ranges_from=ranges)
    assert distances(expected, values_of(trained.eval(), INPUTS)) == [0.0]
    assert distances(expected, values_of(tq.convert_pt2e(trained), INPUTS)) == [0.0]
    train(trained, [INPUTS] * 2)
    assert differences(trained, INPUTS) == [0.0]
    assert distances(expected, values_of(trained, INPUTS)) != [0.0]
