"""Weights whose integers were chosen, in a program: the kernels compute with these."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchquilt as tq
from strategies import export, normal, sqnr
from torchquilt_xnnpack import XNNPACKQuantizer

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    "preset", ["dynamic_int8_weight_int4_group32", "dynamic_int8_weight_int4", "static_int8_per_channel"]
)
def test_a_program_computes_with_the_integers_that_were_chosen(preset: str) -> None:
    """It is much nearer to the model that it was made of than to that of the nearest integers."""
    torch.manual_seed(0)
    data = [(normal(16, 64, seed=seed) @ normal(64, 64, seed=9),) for seed in range(3)]
    quantizer = XNNPACKQuantizer.from_preset(preset)
    prepared = tq.calibrate(tq.prepare_pt2e(export(nn.Linear(64, 32), *data[0]), quantizer), data)
    rounded = tq.convert_pt2e(tq.recovery.round_weights(prepared, data))
    program = tq.lower(rounded, data[0])
    found = program.run(*data[0])
    assert program.integer_operations
    assert sqnr(rounded(*data[0]), found) > 40
    assert sqnr(tq.convert_pt2e(prepared)(*data[0]), found) < sqnr(rounded(*data[0]), found) - 6
