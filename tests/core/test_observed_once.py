"""Calibration looks at each tensor of a group once, and at no weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from strategies import Fn, normal, prepare
from torchquilt.observers import MinMaxObserver
from torchquilt.pt2e.observer_points import observed_points
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

X = normal(2, 4, 6)


class Noting(MinMaxObserver):
    """Keeps the shapes of what it is shown."""

    def __init__(self, spec: tq.QuantizationSpec) -> None:
        super().__init__(spec)
        self.shapes: list[tuple[int, ...]] = []

    def update(self, tensor: torch.Tensor) -> None:
        """Note the shape, and look."""
        self.shapes.append(tuple(tensor.shape))
        super().update(tensor)


def prepared_of(function: Callable[..., Any], **parts: nn.Module) -> GraphModule:
    """A model of a function, prepared for XNNPACK, static, per channel."""
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    return prepare(Fn(function, **parts), quantizer, X, observer=Noting)


def shapes_seen(prepared: GraphModule) -> list[tuple[int, ...]]:
    """Shapes that all observers were shown in one batch, in no order."""
    tq.calibrate(prepared, [(X,)])
    return sorted(shape for point in observed_points(prepared).values() for shape in point.observer.shapes)


def test_no_weight_is_observed() -> None:
    """Of a linear its input and its output are, and neither weight nor bias."""
    assert shapes_seen(prepared_of(lambda m, x: m.fc(x), fc=nn.Linear(6, 5))) == [(2, 4, 5), (2, 4, 6)]


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.reshape(2, 20),
        lambda x: x.permute(0, 2, 1),
        lambda x: x.reshape(2, 2, 2, 5).permute(0, 2, 1, 3).reshape(4, 10),
        lambda x: x[:, :2],
        lambda x: x.unsqueeze(0),
    ],
    ids=["reshape", "permute", "three moves", "slice", "unsqueeze"],
)
def test_what_is_only_moved_is_observed_once(move: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """The output of a linear is looked at, and not again as a view of it, which has no other numbers."""
    prepared = prepared_of(lambda m, x: move(m.fc(x)), fc=nn.Linear(6, 5))
    assert shapes_seen(prepared) == [(2, 4, 5), (2, 4, 6)]


def test_the_inputs_of_a_join_are_all_of_it() -> None:
    """The output of cat is not looked at, since both of its inputs are."""
    prepared = prepared_of(lambda m, x: torch.cat([m.a(x), m.b(x)], 1), a=nn.Linear(6, 5), b=nn.Linear(6, 5))
    assert shapes_seen(prepared) == [(2, 4, 5), (2, 4, 5), (2, 4, 6)]


def test_what_computes_is_observed() -> None:
    """A mean shares the parameters of its input, and has values of its own: it is looked at."""
    prepared = prepared_of(
        lambda m, x: nn.functional.adaptive_avg_pool2d(m.conv(x[:, :, None]), 1), conv=nn.Conv2d(4, 3, 1)
    )
    assert (2, 3, 1, 1) in shapes_seen(prepared)


def test_a_moved_tensor_has_the_range_of_what_was_moved() -> None:
    """It is quantized as before, with the parameters of its group."""
    prepared = prepared_of(lambda m, x: m.fc(x).permute(0, 2, 1), fc=nn.Linear(6, 5))
    tq.calibrate(prepared, [(X,)])
    quantized = tq.convert_pt2e(prepared)
    steps = [n.args[1:3] for n in quantized.graph.nodes if "dequantize_per_tensor" in str(n.target)]
    assert steps[-1] == steps[-2]
