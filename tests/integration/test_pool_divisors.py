"""Averages with a divisor of their own, on runtimes that have none: they run in operators that these have."""

from __future__ import annotations

import pytest
import torch

import torchquilt as tq
from pools import BETWEEN, SIZES, Averages, Between, settings
from strategies import normal, sqnr

IMAGES = normal(2, 3, 16, 17)


@pytest.fixture(params=["onnxruntime", "openvino"])
def target(request: pytest.FixtureRequest) -> str:
    """A target, which is also the name of its backend."""
    return str(request.param)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_float_averages_are_those_of_torch(target: str, dimensions: int) -> None:
    """With any kernel, stride and padding, counted or not, in ceil mode or not."""
    model, x = Averages(settings(dimensions, 12, seed=1)), normal(2, 2, *SIZES[dimensions])
    program = tq.lower(torch.export.export(model, (x,)), target=target, backends=[], verify=False)
    torch.testing.assert_close(program.run(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", BETWEEN)
def test_averages_of_quantized_values_are_right(target: str, name: str) -> None:
    """Between integers they are computed in float, and the ledger says so."""
    torch.manual_seed(0)
    exported = torch.export.export(Between(BETWEEN[name]).eval(), (IMAGES,))
    prepared = tq.prepare_pt2e(exported, f"{target}:static_int8_per_channel")
    made = tq.convert_pt2e(tq.calibrate(prepared, [(IMAGES,)], progress=False))
    program = tq.lower(made, (IMAGES,), target=target, verify=False)
    assert sqnr(made(IMAGES), program.run(IMAGES)) > 60
    assert program.ledger is not None
    found = {row.node: row.lowered.code for row in program.ledger if row.lowered is not None}
    assert found == {
        "conv2d": "integer_kernel",
        "max_pool2d": "integer_kernel",
        "avg_pool2d": "float_kernel",
        "conv2d_1": "integer_kernel",
    }
    assert not program.ledger["avg_pool2d"].is_quantized


@pytest.mark.parametrize("divisor", [None, 4])
def test_padding_leaves_a_dynamic_batch_dynamic(target: str, divisor: int | None) -> None:
    """Of the program that is lowered as well, which may be lowered again."""
    model = Averages([{"kernel_size": 3, "padding": 1, "divisor_override": divisor}])
    batch = torch.export.Dim("batch", min=1, max=8)
    exported = torch.export.export(model, (IMAGES,), dynamic_shapes=({0: batch},))
    for _ in range(2):
        program = tq.lower(exported, target=target, backends=[], verify=False)
        torch.testing.assert_close(program.run(IMAGES[:1]), model(IMAGES[:1]))
