"""Softmax behind images that the delegate keeps channels last: computed along the dimension it names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import torchquilt as tq
from strategies import Fn, export, normal, quantize
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

IMAGE = normal(1, 4, 8, 8)

#: What stands in front of the softmax, and behind it.
CALLS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "convolution": lambda m, x: torch.softmax(m.first(x), -1),
    "by its number": lambda m, x: torch.softmax(m.first(x), 3),
    "between convolutions": lambda m, x: m.second(torch.softmax(m.first(x), -1)),
    "pooling": lambda m, x: torch.softmax(functional.max_pool2d(m.first(x), 2), -1),
    "elementwise": lambda m, x: torch.softmax(torch.relu(m.first(x) * 2), -1) * torch.sigmoid(x),
    "attention": lambda m, x: torch.softmax(m.first(x) @ x.transpose(-1, -2), -1) @ x,
}


@pytest.mark.parametrize("mode", ["float", "static", "dynamic"])
@pytest.mark.parametrize("name", CALLS)
def test_a_softmax_behind_an_image_is_computed_along_its_dimension(name: str, mode: str) -> None:
    """The delegate keeps images channels last, and computes a softmax along what lies last in memory.

    That was -0.3 to 5.3 dB.
    """
    torch.manual_seed(0)
    layers = {one: nn.Conv2d(4, 4, 3, padding=1) for one in ("first", "second")}
    module = Fn(CALLS[name], **layers).eval()
    if mode == "float":
        model: Any = export(module, IMAGE)
    else:
        config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=mode == "dynamic")
        model = quantize(module, XNNPACKQuantizer().set_global(config), IMAGE)
    program = tq.lower(model, (IMAGE,), backends=["xnnpack"], verify=True)
    assert any(kernel.name == "Softmax" for kernel in program.kernels)


def test_images_that_come_channels_last_are_no_other() -> None:
    """Nothing but the input tells of the layout there."""
    image = IMAGE.to(memory_format=torch.channels_last)
    model = export(Fn(lambda _, x: torch.softmax(x * 2, -1)), image)
    assert tq.lower(model, (image,), backends=["xnnpack"], verify=True).verification


def test_nothing_is_put_in_front_of_other_softmaxes() -> None:
    """Results computed from views are contiguous, as the scores of an attention are."""
    module = Fn(lambda m, x: torch.softmax(m.fc(x).view(1, 8, 4, 2), -1), fc=nn.Linear(8, 8))
    program = tq.lower(export(module, normal(8, 8)), backends=["xnnpack"])
    assert not any(kernel.name == "StaticTranspose" for kernel in program.kernels)
