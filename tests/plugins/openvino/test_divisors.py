"""Averages with a divisor of their own, which OpenVINO has not: they run in operators that it has."""

from __future__ import annotations

import pytest
import torch

import torchquilt as tq
from plugins.openvino.models import quantized, statuses
from pools import BETWEEN, SIZES, Averages, Between, settings
from strategies import normal, sqnr

IMAGES = normal(2, 3, 16, 17)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_float_averages_are_those_of_torch(dimensions: int) -> None:
    """With any kernel, stride and padding, counted or not, in ceil mode or not."""
    model, x = Averages(settings(dimensions, 12, seed=1)), normal(2, 2, *SIZES[dimensions])
    program = tq.lower(torch.export.export(model, (x,)), target="openvino", backends=[], verify=False)
    torch.testing.assert_close(program.run(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", BETWEEN)
def test_averages_of_quantized_values_are_right(name: str) -> None:
    """Between integers they are computed in float, and the ledger says so."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Between(BETWEEN[name])
    made = quantized(model, (IMAGES,))
    program = tq.lower(made, (IMAGES,), target="openvino", verify=False)
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


@pytest.mark.parametrize("divisor", [None, 4])
def test_padding_leaves_a_dynamic_batch_dynamic(divisor: int | None) -> None:
    """Of the program that is lowered as well, which may be lowered again."""
    model = Averages([{"kernel_size": 3, "padding": 1, "divisor_override": divisor}])
    batch = torch.export.Dim("batch", min=1, max=8)
    exported = torch.export.export(model, (IMAGES,), dynamic_shapes=({0: batch},))
    for _ in range(2):
        program = tq.lower(exported, target="openvino", backends=[], verify=False)
        torch.testing.assert_close(program.run(IMAGES[:1]), model(IMAGES[:1]))
