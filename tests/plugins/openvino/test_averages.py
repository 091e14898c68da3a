"""Averages that OpenVINO computes otherwise than torch, unless they are written in another form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

import torchquilt as tq
from strategies import Fn, export, normal

pytestmark = pytest.mark.long
IMAGE = normal(1, 4, 12, 12)
#: What reads the average; the runtime rounds it to 8 bits in front of products, and of a bend at zero.
READERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "negated": lambda y: -y,
    "a product": lambda y: y * -1.8,
    "a square": lambda y: y * y,
    "a bend": lambda y: functional.leaky_relu(y, 0.2),
    "moved, a difference": lambda y: 1 - y.transpose(2, 3),
    "a norm": lambda y: functional.batch_norm(
        y, torch.zeros(4), torch.tensor([1.0, 2, 3, 4]), -torch.ones(4)
    ),
    "two": lambda y: torch.sigmoid(y) - y,
    "returned": lambda y: y,
}


@pytest.mark.parametrize("then", ["a layer", "nothing"])
@pytest.mark.parametrize("reader", READERS)
def test_an_average_of_integers_stays_exact(reader: str, then: str) -> None:
    """The program agrees with the quantized model to the last bits of floats."""
    torch.manual_seed(0)
    layers = {name: nn.Conv2d(4, 4, 3, padding=1) for name in ("first", "last")}
    last = (lambda m, y: m.last(y)) if then == "a layer" else (lambda m, y: y)
    module = Fn(
        lambda m, x: last(m, READERS[reader](functional.avg_pool2d(m.first(x).relu(), 2, padding=1))),
        **layers,
    )
    prepared = tq.prepare_pt2e(export(module, IMAGE), "openvino:static_int8")
    quantized = tq.convert_pt2e(tq.calibrate(prepared, [(IMAGE,)], progress=False))
    program = tq.lower(quantized, (IMAGE,), target="openvino", verify=100.0)
    assert program.verification is not None


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (3, 3), (2, 3)])
@pytest.mark.parametrize("size", [6, 7, 12])
def test_windows_that_hang_over_count_what_torch_counts(
    size: int, kernel: int, stride: int, counts: bool
) -> None:
    """In ceil mode, with padding: shape and values, also where torch drops a window that begins in it."""
    x = normal(1, 2, size, size)

    def average(x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(x, kernel, stride, 1, ceil_mode=True, count_include_pad=counts)

    program = tq.lower(export(Fn(lambda m, x: average(x)), x), (x,), target="openvino", backends=[])
    torch.testing.assert_close(program.run(x), average(x))
