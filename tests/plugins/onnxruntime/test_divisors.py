"""Averages with a divisor of their own, which ONNX Runtime has not: they run in operators that it has."""

from __future__ import annotations

import pytest
import torch

import torchquilt as tq
from plugins.onnxruntime.programs import converted, statuses
from pools import BETWEEN, SIZES, Averages, Between, settings
from strategies import normal, sqnr

IMAGES = normal(2, 3, 16, 17)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_float_averages_are_those_of_torch(dimensions: int) -> None:
    """With any kernel, stride and padding, counted or not, in ceil mode or not."""
    model, x = Averages(settings(dimensions, 12, seed=1)), normal(2, 2, *SIZES[dimensions])
    program = tq.lower(torch.export.export(model, (x,)), target="onnxruntime", backends=[], verify=False)
    torch.testing.assert_close(program.run(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", BETWEEN)
def test_averages_of_quantized_values_are_right(name: str) -> None:
    """Between integers they are computed in float, and the ledger says so."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Between(BETWEEN[name])
    made = converted(model, (IMAGES,))
    program = tq.lower(made, (IMAGES,), target="onnxruntime", verify=False)
    assert sqnr(made(IMAGES), program.run(IMAGES)) > 60
    found = statuses(program)
    assert found == {
        "conv2d": "integer_kernel",
        "max_pool2d": "integer_kernel",
        "avg_pool2d": "float_kernel",
        "conv2d_1": "integer_kernel",
    }
    assert program.ledger is not None
    assert not program.ledger["avg_pool2d"].is_quantized
