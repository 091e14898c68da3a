"""Training beside torchao's with ExecuTorch's quantizer, where that is right.

That is with an eps of 1e-5, static, per channel, and with the weights' fake quantize in its plain form that
follows the weight: the fused one of the default trains with scales that are 0.4 % larger than those which its
own convert writes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import attrs
import pytest
import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer as OracleQuantizer,
)
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    get_symmetric_quantization_config,
)
from torch import nn
from torch.fx import GraphModule
from torchao.quantization import pt2e as torchao
from torchao.quantization.pt2e import quantize_pt2e as torchao_flow
from torchao.quantization.pt2e.fake_quantize import FakeQuantize
from torchao.quantization.pt2e.observer import MovingAveragePerChannelMinMaxObserver

import torchquilt as tq
from plugins.oracle import our_quantizer, outline
from strategies import Fn, normal
from torchquilt.graph.qdq import qdq_of
from torchquilt.pt2e.qat.learned_points import LearnedPoint
from torchquilt.pt2e.qat.points import TrainingPoint
from trained import step

#: It takes long, for torchao does: `make test-long` runs it.
pytestmark = pytest.mark.long

RATE = 1e-4


def conv_bn(inputs: int = 3, outputs: int = 8, kernel: int = 3, **options: Any) -> list[nn.Module]:
    """A convolution without a bias, and its BatchNorm."""
    return [nn.Conv2d(inputs, outputs, kernel, bias=False, **options), nn.BatchNorm2d(outputs, eps=1e-5)]


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv bn": (lambda: nn.Sequential(*conv_bn()), (8, 3, 8, 8)),
    "conv bn relu": (lambda: nn.Sequential(*conv_bn(), nn.ReLU()), (8, 3, 8, 8)),
    "conv bn relu, twice": (
        lambda: nn.Sequential(*conv_bn(), nn.ReLU(), *conv_bn(8, 4), nn.ReLU()),
        (8, 3, 9, 9),
    ),
    "depthwise separable": (
        lambda: nn.Sequential(
            *conv_bn(), nn.ReLU(), *conv_bn(8, 8, groups=8, padding=1), nn.ReLU(), *conv_bn(8, 4, 1)
        ),
        (8, 3, 9, 9),
    ),
    "residual": (
        lambda: Fn(
            lambda m, x: m.relu(m.second(y := m.first(x)) + y),
            first=nn.Sequential(*conv_bn(), nn.ReLU()),
            second=nn.Sequential(*conv_bn(8, 8, padding=1)),
            relu=nn.ReLU(),
        ),
        (8, 3, 8, 8),
    ),
    "perceptron": (lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), (8, 16)),
}
each_model = pytest.mark.parametrize("name", MODELS)


@attrs.frozen(eq=False)
class Pair:
    """One float model, prepared for training by us and by torchao."""

    ours: GraphModule
    theirs: GraphModule
    shape: tuple[int, ...]

    def batches(self, number: int) -> list[tuple[torch.Tensor]]:
        """The same data for both."""
        return [(normal(*self.shape, seed=seed),) for seed in range(number)]

    def converted(self) -> tuple[GraphModule, GraphModule]:
        """Both after convert; they can be trained further."""
        theirs = copy.deepcopy(self.theirs)
        torchao.move_exported_model_to_eval(theirs)
        return tq.convert_pt2e(self.ours), torchao_flow.convert_pt2e(theirs)


def oracle_config() -> Any:
    """ExecuTorch's config for training, with weights whose range is their own at each step."""
    config = copy.deepcopy(get_symmetric_quantization_config(is_per_channel=True, is_qat=True))
    of_value = MovingAveragePerChannelMinMaxObserver.with_args(averaging_constant=1.0)
    plain = FakeQuantize.with_args(observer=of_value, eps=2**-12)
    object.__setattr__(config.weight, "observer_or_fake_quant_ctr", plain)
    return config


def prepared(name: str) -> Pair:
    """A model, prepared by both; as small as it is, torchao takes a second for it."""
    torch.manual_seed(0)
    make, shape = MODELS[name]
    inputs = (normal(*shape),)
    exported = torch.export.export(make().train(), inputs)
    quantizer = OracleQuantizer().set_global(oracle_config())
    theirs = torchao_flow.prepare_qat_pt2e(copy.deepcopy(exported).module(), quantizer)
    return Pair(tq.prepare_qat_pt2e(exported, our_quantizer()), theirs, shape)


@cache
def trained(name: str, steps: int) -> Pair:
    """A pair after so many steps, and one pass forward in training where there are none."""
    pair = prepared(name)
    for model in (pair.ours, pair.theirs):
        if steps:
            optimizer = torch.optim.SGD(model.parameters(), RATE)
            for inputs in pair.batches(steps):
                step(model, inputs, optimizer)
        else:
            model(*pair.batches(1)[0])
    return pair


def scales(model: GraphModule) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The scales of activations and those of weights, in the order of the graph; each once."""
    found: dict[str, torch.Tensor] = {}
    for node in model.graph.find_nodes(op="call_module"):
        held = model.get_submodule(str(node.target))
        if hasattr(held, "scale") and str(node.target) not in found:
            assert not isinstance(held, LearnedPoint)
            assert isinstance(held, TrainingPoint) or "FakeQuantize" in type(held).__name__
            found[str(node.target)] = held.scale.detach().reshape(-1).clone()
    return [one for one in found.values() if one.numel() == 1], [
        one for one in found.values() if one.numel() > 1
    ]


def assert_near(ours: list[torch.Tensor], theirs: list[torch.Tensor], share: float) -> None:
    """Each scale is the other's, up to a share of it."""
    assert len(ours) == len(theirs)
    far = [float((one / other - 1).abs().max()) for one, other in zip(ours, theirs, strict=True)]
    assert far
    assert max(far) <= share, far


@each_model
def test_scales_are_the_same_at_the_first_forward(name: str) -> None:
    """Of each activation and of each channel of the folded weights, to a millionth."""
    pair = trained(name, 0)
    for ours, theirs in zip(scales(pair.ours), scales(pair.theirs), strict=True):
        assert_near(ours, theirs, 1e-6)


@each_model
def test_scales_are_the_same_after_five_steps(name: str) -> None:
    """To a thousandth, and so are the parameters that were trained."""
    pair = trained(name, 5)
    for ours, theirs in zip(scales(pair.ours), scales(pair.theirs), strict=True):
        assert_near(ours, theirs, 1e-3)
    found, expected = (dict(model.named_parameters()) for model in (pair.ours, pair.theirs))
    begun = dict(prepared(name).ours.named_parameters())
    for key, parameter in found.items():
        moved = float((parameter - begun[key]).norm())
        assert moved > 0
        assert float((parameter - expected[key]).norm()) <= 0.02 * moved, key


@each_model
def test_the_same_nodes_are_quantized_after_convert(name: str) -> None:
    """The same operators read the same quantized tensors, with the same integers."""
    ours, theirs = trained(name, 5).converted()
    assert outline(ours) == outline(theirs)
    assert integers(ours) == integers(theirs)


def integers(model: GraphModule) -> list[tuple[Any, ...]]:
    """Arguments of each quantize and dequantize but for scale and zero point, sorted."""
    read = [qdq_of(node) for node in model.graph.nodes]
    return sorted(
        (one.is_quantize, str(one.granularity), one.quant_min, one.quant_max, str(one.dtype), one.axis or 0)
        for one in read
        if one is not None
    )
