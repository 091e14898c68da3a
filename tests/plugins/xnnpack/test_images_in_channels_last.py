"""Static operators of images that lie channels last, as inputs of the delegate, run as integers and right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from plugins.oracle import Model
from plugins.xnnpack.cases import Case, case_of
from strategies import Fn, normal, sqnr

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

_Operator = tuple[Callable[[Any, torch.Tensor], torch.Tensor], dict[str, Callable[[], nn.Module]]]

OPERATORS: dict[str, _Operator] = {
    "convolution": (lambda m, x: m.conv(x), {"conv": lambda: nn.Conv2d(4, 6, 3)}),
    "depthwise convolution": (lambda m, x: m.conv(x), {"conv": lambda: nn.Conv2d(4, 4, 3, groups=4)}),
    "transposed convolution": (lambda m, x: m.conv(x), {"conv": lambda: nn.ConvTranspose2d(4, 6, 3)}),
    "pad and convolution": (
        lambda m, x: m.conv(functional.pad(x, (0, 1, 2, 0))),
        {"conv": lambda: nn.Conv2d(4, 6, 3)},
    ),
    "pad": (
        lambda m, x: m.conv(functional.pad(x, (0, 1, 2, 0)).relu()),
        {"conv": lambda: nn.Conv2d(4, 6, 3)},
    ),
    "linear": (lambda m, x: m.fc(x), {"fc": lambda: nn.Linear(5, 6)}),
    "linear and convolution": (
        lambda m, x: m.fc(x) + m.conv(x),
        {"fc": lambda: nn.Linear(5, 5), "conv": lambda: nn.Conv2d(4, 4, 3, padding=1)},
    ),
    "permute": (lambda m, x: m.fc(x.permute(0, 2, 3, 1)), {"fc": lambda: nn.Linear(4, 6)}),
    "flatten": (lambda m, x: m.fc(x.flatten(1)), {"fc": lambda: nn.Linear(120, 6)}),
    "cat": (
        lambda m, x: m.conv(torch.cat([x, m.first(x)], 1)),
        {"conv": lambda: nn.Conv2d(8, 6, 1), "first": lambda: nn.Conv2d(4, 4, 1)},
    ),
    "slice": (lambda m, x: m.conv(x[:, 1:3]), {"conv": lambda: nn.Conv2d(2, 6, 1)}),
    "max-pool": (lambda m, x: m.conv(functional.max_pool2d(x, 2)), {"conv": lambda: nn.Conv2d(4, 6, 1)}),
    "mean": (lambda m, x: m.conv(x.mean((2, 3), keepdim=True)), {"conv": lambda: nn.Conv2d(4, 6, 1)}),
}

#: What stands in front: nothing, an operator of the delegate in float, and one of the runtime.
FRONTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "input": lambda x: x,
    "behind float": torch.tanh,
    "behind the runtime": lambda x: x.flip(-1),
}


def in_channels_last(x: torch.Tensor) -> torch.Tensor:
    """The same image with its channels behind the others in memory."""
    return x.contiguous(memory_format=torch.channels_last)


def case_in_channels_last(name: str, front: str, batch: int) -> Case:
    """An operator of an image that comes channels last."""
    torch.manual_seed(0)
    run, layers = OPERATORS[name]
    parts = {part: make() for part, make in layers.items()}
    model = Fn(lambda m, x: run(m, FRONTS[front](x)), **parts)
    return case_of(Model(model, (in_channels_last(normal(batch, 4, 6, 5)),)))


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_of_an_image_in_channels_last(name: str, front: str) -> None:
    """It runs as integers, and returns what the converted model returns."""
    case = case_in_channels_last(name, front, batch=1 if name == "flatten" else 2)
    ((expected, found),) = case.differences()

    assert any("qint8" in kernel for kernel in case.lowered.computing)
    assert sqnr(expected, found) > 40
