"""The reference representation against XNNPACK itself: the integers of both, side by side.

Models are lowered without the dequantize operators at their end, so that a program returns the integers of
XNNPACK's kernels. Those of the reference model may differ from them by one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional

import torchquilt as tq
from plugins.lowered import Lowered, lower
from plugins.oracle import outputs_of
from strategies import Fn, integer_outputs, normal, prepare, sqnr
from torchquilt.pt2e.reference import left_in_float
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long


def conv(outputs: int = 16, kernel: Any = 3, **options: Any) -> nn.Conv2d:
    """A convolution of images with eight channels."""
    return nn.Conv2d(8, outputs, kernel, **options)


def of_pair(function: Callable[..., Any]) -> Callable[[], nn.Module]:
    """A function of two tensors."""
    return lambda: Fn(lambda m, x, y: function(x, y))


@attrs.frozen(eq=False)
class Family:
    """Models that read the same inputs, and so can be lowered as one.

    Args:
        inputs: what they read.
        models: name → model, and the kernel that XNNPACK runs it with.
    """

    inputs: tuple[torch.Tensor, ...]
    models: dict[str, tuple[Callable[[], nn.Module], str]]


FAMILIES = {
    "rows": Family(
        (normal(64, 24),),
        {
            "linear": (lambda: nn.Linear(24, 16), "FullyConnected"),
            "linear without bias": (lambda: nn.Linear(24, 16, bias=False), "FullyConnected"),
            "linear, relu": (lambda: nn.Sequential(nn.Linear(24, 16), nn.ReLU()), "FullyConnected"),
        },
    ),
    "sequences": Family(
        (normal(4, 8, 33),),
        {"conv1d": (lambda: nn.Conv1d(8, 16, 4, stride=2, padding=2, dilation=2, groups=2), "Conv2d")},
    ),
    "images": Family(
        (normal(4, 8, 12, 12),),
        {
            "conv2d": (lambda: conv(padding=(2, 1), stride=(1, 2)), "Conv2d"),
            "conv2d, grouped": (lambda: conv(kernel=(3, 1), groups=4, stride=(2, 3)), "Conv2d"),
            "conv2d, dilated": (lambda: conv(padding=2, dilation=2, bias=False), "Conv2d"),
            "conv2d, same": (lambda: conv(kernel=4, padding="same"), "Conv2d"),
            "conv2d, hardtanh": (lambda: nn.Sequential(conv(), nn.Hardtanh(-0.4, 0.3)), "Conv2d"),
            "depthwise, relu6": (
                lambda: nn.Sequential(conv(groups=8, padding=1), nn.ReLU6()),
                "DepthwiseConv2d",
            ),
            "adaptive_avg_pool2d": (lambda: nn.AdaptiveAvgPool2d(1), "GlobalAvgPooling2d"),
        },
    ),
    "pairs": Family(
        (normal(8, 4, 6, 6), normal(8, 4, 6, 6, seed=1) * 3 + 1),
        {
            "add": (of_pair(torch.add), "Add"),
            "add, relu": (of_pair(lambda x, y: (x + y).relu()), "Add"),
            "add of itself": (of_pair(lambda x, y: (x + x) + y), "Add"),
            "add of a constant": (of_pair(lambda x, y: x * y + 0.7), "Add"),
            "mul": (of_pair(torch.mul), "Multiply"),
            "cat": (of_pair(lambda x, y: torch.cat([x + y, x * y], 1)), "Concatenate2"),
            "max_pool2d": (of_pair(lambda x, y: functional.max_pool2d(x + y, 3, 2, 1)), "MaxPooling2d"),
            "mean": (of_pair(lambda x, y: (x + y).mean((2, 3), keepdim=True)), "GlobalAvgPooling2d"),
            "view, clamp": (of_pair(lambda x, y: (x + y).view(8, -1).clamp(-1, 2)), "StaticReshape"),
            "permute": (of_pair(lambda x, y: (x + y).permute(0, 2, 3, 1)), "StaticTranspose"),
            "slice, flatten": (of_pair(lambda x, y: (x + y)[:, 1:3].flatten(1)), "StaticSlice"),
        },
    ),
}


@attrs.frozen(eq=False)
class Case:
    """A model in integer arithmetic, and what XNNPACK makes of it."""

    inputs: tuple[torch.Tensor, ...]
    reference: GraphModule
    lowered: Lowered

    def results(self) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
        """Outputs of both, for what the model was calibrated with and for inputs that go beyond that."""
        others = (tuple(normal(*x.shape, seed=seed) * 2 for x in self.inputs) for seed in (7, 8))
        return [(outputs_of(self.reference, x), self.lowered.run(*x)) for x in (self.inputs, *others)]


def case_of(model: nn.Module, inputs: tuple[torch.Tensor, ...], **asked: bool) -> Case:
    """Convert in both ways; lower one of them."""
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(**asked))
    prepared = tq.calibrate(prepare(model, quantizer, *inputs), [inputs])
    converted = tq.convert_pt2e(prepared)
    reference = tq.convert_pt2e(prepared, use_reference_representation=True)
    assert left_in_float(reference) == {}
    if not asked.get("is_dynamic"):
        converted, reference = integer_outputs(converted), integer_outputs(reference)
    return Case(inputs, reference, lower(converted, *inputs))


@cache
def case_of_family(name: str, is_per_channel: bool) -> Case:
    """All models of a family side by side, lowered once."""
    torch.manual_seed(0)
    family = FAMILIES[name]
    parts = {f"part{i}": make() for i, (make, _) in enumerate(family.models.values())}
    side_by_side = Fn(lambda m, *inputs: tuple(getattr(m, part)(*inputs) for part in parts), **parts)
    return case_of(side_by_side, family.inputs, is_per_channel=is_per_channel)


def granularities(family: str) -> tuple[bool, ...]:
    """Whether the weights of a family have one scale, or one for each channel: both, but for pairs."""
    return (False,) if family == "pairs" else (False, True)


CASES = [
    pytest.param(family, granular, name, id=f"{name}-{'per channel' if granular else 'per tensor'}")
    for family in FAMILIES
    for granular in granularities(family)
    for name in FAMILIES[family].models
]


@pytest.mark.parametrize(("family", "is_per_channel", "name"), CASES)
def test_integers_are_those_of_the_kernel(family: str, is_per_channel: bool, name: str) -> None:
    """XNNPACK runs the model on int8, and its integers differ from ours by at most one."""
    case = case_of_family(family, is_per_channel)
    number, kernel = list(FAMILIES[family].models).index(name), FAMILIES[family].models[name][1]

    assert case.lowered.outside == ()
    assert any(computing.startswith(f"{kernel}(") for computing in case.lowered.computing)
    assert not [computing for computing in case.lowered.computing if "fp" in computing]
    for ours, theirs in case.results():
        assert ours[number].dtype is theirs[number].dtype is torch.int8
        assert (ours[number].int() - theirs[number].int()).abs().max() <= 1


class Network(nn.Module):
    """Layers of networks for images, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(8, stride=2, padding=1)
        self.depthwise = conv(8, padding=1, groups=8)
        self.pointwise = conv(8, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores."""
        x = functional.relu6(self.stem(x))
        x = x + self.pointwise(functional.relu6(self.depthwise(x)))
        x = functional.max_pool2d(torch.cat([x, x * x], 1), 2)
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def test_integers_of_a_network() -> None:
    """Through ten kernels one after the other the integers stay together: no difference adds up."""
    torch.manual_seed(0)
    case = case_of(Network(), FAMILIES["images"].inputs, is_per_channel=True)

    assert case.lowered.outside == ()
    assert len(case.lowered.computing) >= 10
    for (ours,), (theirs,) in case.results():
        assert (ours.int() - theirs.int()).abs().max() <= 1


DYNAMIC = {
    "linear": (lambda: nn.Linear(24, 16), normal(64, 24)),
    "linear of three dimensions, no bias": (lambda: nn.Linear(24, 16, bias=False), normal(3, 20, 24)),
    "rows of different size": (
        lambda: nn.Linear(24, 16),
        torch.cat([normal(8, 24) * 1000, normal(8, 24, seed=1) * 0.001]),
    ),
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_linear_is_that_of_the_kernel(name: str) -> None:
    """XNNPACK multiplies integers that it makes at run time; each row of its output agrees to 80 dB."""
    torch.manual_seed(0)
    make, x = DYNAMIC[name]
    case = case_of(make(), (x,), is_per_channel=True, is_dynamic=True)

    assert case.lowered.outside == ()
    assert case.lowered.computing == ("FullyConnected(qdint8, qcint8) -> fp32",)
    for (ours,), (theirs,) in case.results():
        rows = zip(ours.flatten(0, -2), theirs.flatten(0, -2), strict=True)
        assert min(sqnr(one, other) for one, other in rows) > 80
