"""The smallest scales that the runtime computes with, and what keeps a bias in bounds."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
import torch
from torch import nn

from plugins.lowered import lower
from plugins.oracle import Model, outputs_of
from strategies import Fn, normal, quantize, sqnr
from torchquilt import QuantizationConfig
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config
from torchquilt_xnnpack.specs import SMALLEST_ACTIVATION_SCALE, SMALLEST_WEIGHT_SCALE

pytestmark = pytest.mark.long

STATIC = get_symmetric_quantization_config(is_per_channel=True)
X, Y = normal(4, 16), normal(4, 16, seed=1)


def quality(model: Model, config: QuantizationConfig = STATIC) -> float:
    """SQNR of the runtime against the float model, in dB."""
    converted = quantize(model.module, XNNPACKQuantizer().set_global(config), *model.inputs)
    lowered = lower(converted, *model.inputs)
    assert not lowered.outside
    (expected,) = outputs_of(model.module, model.inputs)
    return sqnr(expected, lowered.run(*model.inputs)[0])


def linear(bias: float = 0.0, weight: float = 1.0) -> nn.Linear:
    """A linear whose bias and weight are of about these sizes."""
    torch.manual_seed(0)
    module = nn.Linear(16, 8)
    with torch.no_grad():
        module.bias.uniform_(-bias, bias) if bias else module.bias.zero_()
        module.weight *= weight
    return module


def without_limit(config: QuantizationConfig) -> QuantizationConfig:
    """The config with scales far below its limits."""
    tiny = 2.0**-60
    assert config.input_activation
    assert config.output_activation
    assert config.weight
    return attrs.evolve(
        config,
        input_activation=attrs.evolve(config.input_activation, eps=tiny),
        output_activation=attrs.evolve(config.output_activation, eps=tiny),
        weight=attrs.evolve(config.weight, eps=tiny),
    )


SMALL: dict[str, Callable[[float], Model]] = {
    "add": lambda size: Model(Fn(lambda m, x, y: x + y), (X * size, Y * size)),
    "mul": lambda size: Model(Fn(lambda m, x, y: x * y), (X * size, Y)),
    "cat": lambda size: Model(Fn(lambda m, x, y: torch.cat([x, y])), (X * size, Y * size)),
    "linear": lambda size: Model(linear(), (X * size,)),
    "weights of linear": lambda size: Model(linear(weight=size), (X,)),
}


@pytest.mark.parametrize("name", SMALL)
def test_the_runtime_computes_with_scales_far_below_the_limits(name: str) -> None:
    """No kernel needs the limits: numbers of 2**-30 have the precision of others."""
    assert quality(SMALL[name](2.0**-30), without_limit(STATIC)) > 35


@pytest.mark.parametrize("name", SMALL)
def test_small_numbers_have_all_of_the_range(name: str) -> None:
    """Down to the limits nothing is lost; with the limit of ExecuTorch's configs a few bits would be left."""
    assert quality(SMALL[name](2.0**-9)) > 35


@pytest.mark.parametrize(
    ("scale", "bias"),
    [(SMALLEST_ACTIVATION_SCALE, 8.0), (2.0**-10, 32.0)],
    ids=["smallest inputs", "no weights"],
)
def test_a_bias_beside_small_scales_fits(scale: float, bias: float) -> None:
    """At either limit the bias of the size that the limit is made for comes through."""
    weight = 1.0 if scale == SMALLEST_ACTIVATION_SCALE else 0.0
    model = Model(linear(bias, weight), (X.clamp(-1, 1) * 127 * scale,))
    assert SMALLEST_WEIGHT_SCALE < SMALLEST_ACTIVATION_SCALE * 8
    assert quality(model) > 35


def test_without_limits_a_bias_fits_all_the_same() -> None:
    """Convert raises the scale of a weight beside which the bias would not fit into int32."""
    model = Model(linear(1.0, 0.0), (X,))
    assert quality(model, without_limit(STATIC)) > 35
