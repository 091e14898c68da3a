"""Ours beside torchao's flow with ExecuTorch's quantizer: the same, and each difference by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import attrs
import pytest
import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer as FullOracleQuantizer
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional

from plugins.oracle import (
    Model,
    are_bit_equal,
    describe,
    oracle_config,
    oracle_quantizer,
    our_quantizer,
    outline,
    outputs_of,
    quantized_by_oracle,
    quantized_by_us,
    steps_of,
)
from strategies import Fn, normal, sqnr

# A model of which nothing is to be quantized is what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:Something was asked for in this model")

# ----------------------------------------------------------------------------------------------------------
# Models
# ----------------------------------------------------------------------------------------------------------


def linear(inputs: int = 6, outputs: int = 6, **options: Any) -> nn.Linear:
    """A linear that fits on most of the inputs here."""
    return nn.Linear(inputs, outputs, **options)


def conv(inputs: int = 3, outputs: int = 4, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """A small convolution."""
    return nn.Conv2d(inputs, outputs, kernel, **options)


def batch_norm(channels: int = 4, kind: type[nn.modules.batchnorm._BatchNorm] = nn.BatchNorm2d) -> nn.Module:
    """A BatchNorm whose statistics and weights are not those that it starts with."""
    module = kind(channels)
    with torch.no_grad():
        module.running_mean.normal_()
        module.running_var.uniform_(0.5, 2)
        module.weight.normal_()
        module.bias.normal_()
    return module


def image(channels: int = 3, size: int = 6) -> torch.Tensor:
    """Two small images."""
    return normal(2, channels, size, size)


class Attention(nn.Module):
    """Self-attention with two heads, a residual and LayerNorm; with a mask where one is given."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = linear(), linear(), linear(), linear()
        self.norm = nn.LayerNorm(6)

    def _heads(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view(2, 4, 2, 3).transpose(1, 2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Attend, project, add, normalise."""
        query, key, value = self._heads(self.query(x)), self._heads(self.key(x)), self._heads(self.value(x))
        scores = query @ key.transpose(2, 3) / 3**0.5
        scores = scores if mask is None else scores + mask
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(2, 4, 6)
        return self.norm(self.out(mixed) + x)


def residual_block() -> Model:
    """Two conv-bn in a residual."""
    return Model(
        Fn(
            lambda m, x: (m.bn2(m.conv2(m.bn1(m.conv1(x)).relu())) + x).relu(),
            conv1=conv(4, 4, padding=1),
            bn1=batch_norm(),
            conv2=conv(4, 4, padding=1, bias=False),
            bn2=batch_norm(),
        ),
        (image(4),),
    )


def two_branches() -> Model:
    """A tensor with three users, two of them convolutions whose results are added."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        stem = m.stem(x).relu()
        return (m.wide(stem) + m.narrow(stem)).relu() + stem

    parts = {"stem": conv(padding=1), "wide": conv(4, 4, padding=1), "narrow": conv(4, 4, 1)}
    return Model(Fn(run, **parts), (image(),))


def views() -> Model:
    """Data that is moved about between two linears."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        moved = m.first(x).view(2, 3, 2, 6).transpose(1, 2).reshape(2, 2, 18)
        return m.last(moved[:, :, 1:13].permute(1, 0, 2))

    return Model(Fn(run, first=linear(6, 12), last=linear(12, 4)), (normal(2, 3, 6),))


ROWS = (normal(3, 6),)
PAIR = (normal(2, 3, 4), normal(2, 3, 4, seed=1))
IDS = (torch.tensor([[0, 8, 3, 3], [5, 1, 7, 2]]),)

SAME: dict[str, Callable[[], Model]] = {
    "linear": lambda: Model(linear(), ROWS),
    "linear without bias": lambda: Model(linear(bias=False), ROWS),
    "linear relu": lambda: Model(nn.Sequential(linear(), nn.ReLU()), ROWS),
    "linear of three dimensions": lambda: Model(linear(), (normal(2, 3, 6),)),
    "perceptron with dropout": lambda: Model(
        nn.Sequential(linear(), nn.ReLU(), nn.Dropout(), linear(), nn.ReLU(), linear()), ROWS
    ),
    "conv": lambda: Model(conv(), (image(),)),
    "conv same padding": lambda: Model(conv(padding="same"), (image(),)),
    "conv bn": lambda: Model(nn.Sequential(conv(), batch_norm()), (image(),)),
    "conv bn relu": lambda: Model(nn.Sequential(conv(bias=False), batch_norm(), nn.ReLU()), (image(),)),
    "depthwise separable": lambda: Model(
        nn.Sequential(conv(4, 4, groups=4), batch_norm(), nn.ReLU(), conv(4, 4, 1)), (image(4),)
    ),
    "grouped conv": lambda: Model(conv(4, 6, groups=2), (image(4),)),
    "conv1d bn relu": lambda: Model(
        nn.Sequential(nn.Conv1d(3, 4, 3), batch_norm(4, nn.BatchNorm1d), nn.ReLU(), nn.Conv1d(4, 4, 3)),
        (normal(2, 3, 9),),
    ),
    "residual block": residual_block,
    "two branches": two_branches,
    "conv with two users": lambda: Model(
        Fn(lambda m, x: (lambda y: y.relu() + y)(m.conv(x)), conv=conv()), (image(),)
    ),
    "cat": lambda: Model(Fn(lambda m, x, y: torch.cat([x, y], 1)), PAIR),
    "cat of convs": lambda: Model(
        Fn(
            lambda m, x: m.last(torch.cat([m.left(x), m.right(x).relu()], 1)),
            left=conv(),
            right=conv(),
            last=conv(8, 4, 1),
        ),
        (image(),),
    ),
    "cat with the input": lambda: Model(
        Fn(lambda m, x: torch.cat([x, m.conv(x)], 1), conv=conv(3, 3, padding=1)), (image(),)
    ),
    "shared linear": lambda: Model(Fn(lambda m, x: m.fc(m.fc(m.fc(x))), fc=linear()), ROWS),
    "max-pool net": lambda: Model(
        nn.Sequential(conv(), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), linear(16)), (image(),)
    ),
    "max-pool in ceil mode": lambda: Model(
        nn.Sequential(conv(), nn.MaxPool2d(3, 2, ceil_mode=True)), (image(),)
    ),
    "average-pool head": lambda: Model(
        nn.Sequential(conv(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(4)), (image(),)
    ),
    "mean head": lambda: Model(
        Fn(
            lambda m, x: m.fc(m.conv(x).relu().mean((2, 3), keepdim=True).flatten(1)),
            conv=conv(),
            fc=linear(4),
        ),
        (image(),),
    ),
    "add": lambda: Model(Fn(lambda m, x, y: x + y), PAIR),
    "add relu": lambda: Model(Fn(lambda m, x, y: (x + y).relu()), PAIR),
    "add to itself": lambda: Model(Fn(lambda m, x: x + x), ROWS),
    "add of a parameter": lambda: Model(Fn(lambda m, x: x + m.fc.bias, fc=linear()), ROWS),
    "mul": lambda: Model(Fn(lambda m, x, y: x * y), PAIR),
    "mul by a number": lambda: Model(Fn(lambda m, x: m.fc(x) * 0.5, fc=linear()), ROWS),
    "add of a number": lambda: Model(Fn(lambda m, x: m.fc(x) + 3, fc=linear()), ROWS),
    "mul with a boolean mask": lambda: Model(Fn(lambda m, x: m.fc(x) * (x > 0), fc=linear()), ROWS),
    "gate": lambda: Model(
        Fn(lambda m, x: m.fc(x) * torch.sigmoid(m.gate(x)) + x, fc=linear(), gate=linear()), ROWS
    ),
    "attention": lambda: Model(Attention(), (normal(2, 4, 6),)),
    "views between linears": views,
    "float between linears": lambda: Model(
        Fn(lambda m, x: m.last(functional.gelu(m.first(x))) + x, first=linear(), last=linear()), ROWS
    ),
    "two outputs": lambda: Model(Fn(lambda m, x: (lambda y: (y, y.relu()))(m.fc(x)), fc=linear()), ROWS),
    "nothing to quantize": lambda: Model(nn.Sequential(nn.ReLU(), nn.Flatten()), PAIR[:1]),
    "embedding in float": lambda: Model(nn.Sequential(nn.Embedding(9, 6), linear()), IDS),
}

models = pytest.mark.parametrize("name", SAME)
weights = pytest.mark.parametrize("is_per_channel", [False, True], ids=["per tensor", "per channel"])


@cache
def both(name: str, is_per_channel: bool) -> tuple[Model, GraphModule, GraphModule]:
    """A model of SAME, and what the oracle and we make of it."""
    torch.manual_seed(0)
    model = SAME[name]()
    theirs = quantized_by_oracle(model, oracle_quantizer(is_per_channel=is_per_channel))
    return model, theirs, quantized_by_us(model, our_quantizer(is_per_channel=is_per_channel))


@weights
@models
def test_static_graphs_are_the_same(name: str, is_per_channel: bool) -> None:
    """Quantize and dequantize stand at the same places with the same parameters between the same nodes."""
    _, theirs, ours = both(name, is_per_channel)

    assert describe(ours) == describe(theirs)
    assert steps_of(ours) == steps_of(theirs)


@weights
@models
def test_static_outputs_are_bit_equal(name: str, is_per_channel: bool) -> None:
    """The two quantized models return the same numbers, to the last bit."""
    model, theirs, ours = both(name, is_per_channel)

    assert are_bit_equal(ours, theirs, model.inputs)


def test_oracle_needs_no_patterns_for_training() -> None:
    """The patterns that the oracle here goes without do not change what ExecuTorch's quantizer does."""
    torch.manual_seed(0)
    model = SAME["conv bn relu"]()
    full = quantized_by_oracle(model, FullOracleQuantizer().set_global(oracle_config()))

    assert describe(full) == describe(quantized_by_oracle(model, oracle_quantizer()))


# ----------------------------------------------------------------------------------------------------------
# Differences that are meant
# ----------------------------------------------------------------------------------------------------------


@attrs.frozen
class Difference:
    """A place where we do not do what the oracle does.

    Args:
        model: makes the smallest model that shows it.
        theirs, ours: the outline of the converted graph on either side, see :func:`plugins.oracle.outline`.
        reason: why ours is right.
    """

    model: Callable[[], Model]
    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    reason: str


def after_linear(
    function: Callable[[torch.Tensor], torch.Tensor], *inputs: torch.Tensor
) -> Callable[[], Model]:
    """A linear, and a function of its output."""
    return lambda: Model(Fn(lambda m, x: function(m.fc(x)), fc=linear()), inputs or ROWS)


def after_conv(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], Model]:
    """A convolution, and a function of its output."""
    return lambda: Model(Fn(lambda m, x: function(m.conv(x)), conv=conv()), (image(),))


SCORES = (
    normal(3, 6),
    torch.zeros(3, 6).index_fill(1, torch.tensor([1, 4]), torch.finfo(torch.float32).min),
)
LINEAR = "linear(q, q, -)"
CONV = "conv2d(q, q, -)"

DIFFERENCES = {
    "relu6 behind a conv": Difference(
        after_conv(nn.ReLU6()),
        (CONV, "hardtanh(q)", "output(q)"),
        (CONV, "hardtanh(-)", "output(q)"),
        "XNNPACK clamps in the kernel of the convolution, so the grid need only reach over what is left",
    ),
    "hardtanh behind a linear": Difference(
        after_linear(functional.hardtanh),
        (LINEAR, "hardtanh(q)", "output(q)"),
        (LINEAR, "hardtanh(-)", "output(q)"),
        "XNNPACK clamps in the kernel of the linear",
    ),
    "clamp behind a linear": Difference(
        after_linear(lambda y: y.clamp(-0.5, 0.5)),
        (LINEAR, "clamp(q)", "output(-)"),
        (LINEAR, "hardtanh(-)", "output(q)"),
        "with two bounds it is a hardtanh, which XNNPACK computes in the kernel of the linear",
    ),
    "clamp with one bound": Difference(
        after_linear(lambda y: y.clamp(min=-0.1)),
        (LINEAR, "clamp(q)", "output(-)"),
        (LINEAR, "clamp(q)", "output(q)"),
        "XNNPACK clamps integers; the oracle makes it a float operator between two conversions",
    ),
    "unsqueeze": Difference(
        after_linear(lambda y: y.unsqueeze(1)),
        (LINEAR, "unsqueeze(q)", "output(-)"),
        (LINEAR, "reshape(q)", "output(q)"),
        "written as a reshape the delegate moves integers; an unsqueeze it takes for the last dimension only",
    ),
    "squeeze": Difference(
        after_linear(lambda y: y.squeeze(1), normal(2, 1, 6)),
        (LINEAR, "squeeze(q)", "output(q)"),
        (LINEAR, "reshape(q)", "output(q)"),
        "written as a reshape the delegate moves integers; it has no squeeze",
    ),
    "slice with a step": Difference(
        after_linear(lambda y: y[:, ::2]),
        (LINEAR, "slice(q)", "output(q)"),
        (LINEAR, "slice(q)", "output(-)"),
        "the delegate slices with step 1 only",
    ),
    "max-pool that leaves pixels out": Difference(
        after_conv(nn.MaxPool2d(1, 2)),
        (CONV, "max_pool2d(q)", "output(q)"),
        (CONV, "max_pool2d(q)", "output(-)"),
        "the delegate pools with a stride of at most the kernel size",
    ),
    "mean over another dimension": Difference(
        after_linear(lambda y: y.mean(1)),
        (LINEAR, "mean(q)", "output(q)"),
        (LINEAR, "mean(q)", "output(-)"),
        "the delegate has a mean over height and width only",
    ),
    "mean that drops its dimensions": Difference(
        after_conv(lambda y: y.mean((2, 3))),
        (CONV, "mean(q)", "output(q)"),
        (CONV, "mean(q)", "output(-)"),
        "the delegate takes the mean over height and width only where it keeps them",
    ),
    "average pool to more than a pixel": Difference(
        after_conv(nn.AdaptiveAvgPool2d(2)),
        (CONV, "adaptive_avg_pool2d(q)", "output(q)"),
        (CONV, "adaptive_avg_pool2d(q)", "output(-)"),
        "only the pool to one pixel becomes an operator that the delegate has (a mean)",
    ),
    "average pool as a function": Difference(
        lambda: Model(Fn(lambda m, x: functional.adaptive_avg_pool2d(x, 1)), (image(),)),
        ("adaptive_avg_pool2d(-)", "output(-)"),
        ("adaptive_avg_pool2d(q)", "output(q)"),
        "the oracle looks up the module class that the node came from; the operator is the same without one",
    ),
    "add with alpha": Difference(
        lambda: Model(Fn(lambda m, x, y: torch.add(x, y, alpha=2)), PAIR),
        ("add(q, q)", "output(q)"),
        ("add(-, -)", "output(-)"),
        "the delegate takes no alpha",
    ),
    "mul relu": Difference(
        lambda: Model(Fn(lambda m, x, y: (x * y).relu()), PAIR),
        ("mul(q, q)", "relu(-)", "output(q)"),
        ("mul(q, q)", "relu(q)", "output(q)"),
        "the delegate fuses no relu with an integer multiplication: without integers between the two it "
        "multiplies in float",
    ),
    "cat of one tensor with itself": Difference(
        lambda: Model(Fn(lambda m, x: torch.cat([x, x], 1)), ROWS),
        ("cat(q, q)", "output(q)"),
        ("cat(-, -)", "output(-)"),
        "the delegate joins two different tensors or more",
    ),
    "attention mask": Difference(
        lambda: Model(Fn(lambda m, x, mask: (m.fc(x) + mask).softmax(-1), fc=linear()), SCORES),
        (LINEAR, "add(q, q)", "softmax(q)", "output(-)"),
        (LINEAR, "add(q, -)", "softmax(-)", "output(-)"),
        "on a grid that reaches down to the mask all scores that are not masked are one number",
    ),
    "attention mask before a temperature": Difference(
        lambda: Model(Fn(lambda m, x, mask: ((m.fc(x) + mask) / 2.0).softmax(-1), fc=linear()), SCORES),
        (LINEAR, "add(q, q)", "div(q)", "softmax(-)", "output(-)"),
        (LINEAR, "add(q, -)", "div(-)", "softmax(-)", "output(-)"),
        "what is masked stays masked when all scores are scaled",
    ),
    "attention mask that is made in the model": Difference(
        lambda: Model(
            Fn(lambda m, x, mask: m.fc(x) + x.masked_fill(mask < 0, torch.finfo().min), fc=linear()), SCORES
        ),
        (LINEAR, "lt(-)", "masked_fill(-, -)", "add(q, q)", "output(q)"),
        (LINEAR, "lt(-)", "masked_fill(-, -)", "add(q, -)", "output(-)"),
        "whatever reads the sum, the grid would reach down to the mask",
    ),
    "normalization in single steps": Difference(
        after_linear(lambda y: y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)),
        (LINEAR, "square(q)", "mean(-)", "add(q, q)", "rsqrt(q)", "mul(q, q)", "output(q)"),
        (LINEAR, "square(q)", "mean(-)", "add(-)", "rsqrt(-)", "mul(q, -)", "output(-)"),
        "variances of rows lie far apart, and one that is rounded to 0 has an infinite inverse",
    ),
    "huge factor": Difference(
        lambda: Model(Fn(lambda m, x, y: x + y * -1e5), PAIR),
        ("mul(q, q)", "add(q, q)", "output(q)"),
        ("mul(-)", "add(-, -)", "output(-)"),
        "a factor of 10,000 or more makes a mask of what it multiplies, which is added in float, too",
    ),
    "transposed conv": Difference(
        lambda: Model(nn.ConvTranspose2d(3, 4, 3), (image(),)),
        ("conv_transpose2d(q, q, -)", "output(q)"),
        ("conv_transpose2d(-, -, -)", "output(-)"),
        "not offered yet, and not among the capabilities",
    ),
    "in-place operators": Difference(
        lambda: Model(nn.Sequential(conv(3, 3, padding=1), nn.ReLU(inplace=True), conv()), (image(),)),
        (CONV, "relu_(-)", CONV, "output(q)"),
        (CONV, "relu(-)", CONV, "output(q)"),
        "a quantized tensor cannot be written to behind the back of its other readers",
    ),
}

differences = pytest.mark.parametrize("name", DIFFERENCES)


def different(name: str) -> tuple[Difference, Model]:
    """A case of DIFFERENCES and its model."""
    torch.manual_seed(0)
    case = DIFFERENCES[name]
    return case, case.model()


@differences
def test_static_difference_of_the_oracle(name: str) -> None:
    """What the oracle does with the case is what the case says, so the difference still exists."""
    case, model = different(name)

    assert tuple(outline(quantized_by_oracle(model, oracle_quantizer()))) == case.theirs, case.reason


@differences
def test_static_difference_of_ours(name: str) -> None:
    """What we do with the case is what the case says is right."""
    case, model = different(name)

    assert tuple(outline(quantized_by_us(model, our_quantizer()))) == case.ours, case.reason


def test_attention_mask_in_float_keeps_the_attention() -> None:
    """The reason for leaving masks in float: quantized as the oracle does, no score is left."""
    _, model = different("attention mask")
    (expected,) = outputs_of(model.module, model.inputs)

    def quality(converted: GraphModule) -> float:
        return sqnr(expected, outputs_of(converted, model.inputs)[0])

    assert quality(quantized_by_us(model, our_quantizer())) > 30
    assert quality(quantized_by_oracle(model, oracle_quantizer())) < 15


def test_normalization_in_float_keeps_a_row_of_zeros_finite() -> None:
    """The reason for leaving a normalization in float: as the oracle does it, one row ruins all others."""
    _, model = different("normalization in single steps")
    model = attrs.evolve(model, inputs=(torch.cat([normal(3, 6), torch.zeros(1, 6)]),))
    model.module.fc.bias = None
    (expected,) = outputs_of(model.module, model.inputs)

    def quality(converted: GraphModule) -> float:
        return sqnr(expected, outputs_of(converted, model.inputs)[0])

    assert quality(quantized_by_us(model, our_quantizer())) > 30
    assert quality(quantized_by_oracle(model, oracle_quantizer())) < 10


def test_fused_clamp_has_the_finer_grid() -> None:
    """The reason for fusing what clamps: the step is that of the range after it, and the error is smaller."""
    torch.manual_seed(0)
    model = Model(nn.Sequential(conv(), nn.Hardtanh(-0.1, 0.1)), (image(),))
    (expected,) = outputs_of(model.module, model.inputs)
    (ours,) = outputs_of(quantized_by_us(model, our_quantizer()), model.inputs)
    (theirs,) = outputs_of(quantized_by_oracle(model, oracle_quantizer()), model.inputs)

    assert sqnr(expected, ours) > sqnr(expected, theirs) + 6


def test_integer_arithmetic_stays_integer() -> None:
    """arange(n) + 0 as an index stays as it is; the oracle makes a float of the 0, which cannot index."""
    torch.manual_seed(0)
    model = Model(
        Fn(
            lambda m, x: m.fc(x) + m.positions(torch.arange(3) + 0), fc=linear(), positions=nn.Embedding(9, 6)
        ),
        (normal(2, 3, 6),),
    )
    ours = quantized_by_us(model, our_quantizer())

    assert outline(ours) == [LINEAR, "arange()", "add(-)", "embedding(-, -)", "add(q, q)", "output(q)"]
    assert sqnr(outputs_of(model.module, model.inputs)[0], outputs_of(ours, model.inputs)[0]) > 30
    with pytest.raises(RuntimeError, match="indices"):
        quantized_by_oracle(model, oracle_quantizer())


# ----------------------------------------------------------------------------------------------------------
# Dynamic
# ----------------------------------------------------------------------------------------------------------

DYNAMIC = {
    "linear": SAME["linear"],
    "linear of three dimensions": SAME["linear of three dimensions"],
    "shared linear": SAME["shared linear"],
    "attention": SAME["attention"],
    "float between linears": SAME["float between linears"],
    "embedding in float": SAME["embedding in float"],
    "conv1d, which stays in float": SAME["conv1d bn relu"],
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_is_per_token_at_the_places_of_the_oracle(name: str) -> None:
    """The same tensors are quantized, and the weights equally; the activations per token, not per tensor.

    XNNPACK finds parameters for each row, whatever the graph says, so per tensor would not be what runs.
    """
    torch.manual_seed(0)
    model = DYNAMIC[name]()
    theirs = quantized_by_oracle(model, oracle_quantizer(is_dynamic=True))
    ours = quantized_by_us(model, our_quantizer(is_dynamic=True))

    assert describe(ours) == [_per_token(line) for line in describe(theirs)]


def _per_token(line: str) -> str:
    """A line of the oracle's description with its dynamic steps per token."""
    tensor = "choose_qparams.tensor[0], choose_qparams.tensor[1], -128, 127, torch.int8"
    token = tensor.replace("choose_qparams.tensor", "choose_qparams_per_token_asymmetric.default")
    line = line.replace(
        f"dequantize_per_tensor.tensor({tensor})", f"dequantize_per_token.default({token}, torch.float32)"
    )
    return line.replace(f"quantize_per_tensor.tensor({tensor})", f"quantize_per_token.default({token})")


def test_dynamic_of_one_token_is_that_of_the_oracle() -> None:
    """With one row a token is the tensor, and then the two agree as far as float32 reaches."""
    torch.manual_seed(0)
    model = Model(nn.Sequential(linear(), nn.ReLU(), linear()), (normal(1, 6),))
    (theirs,) = outputs_of(quantized_by_oracle(model, oracle_quantizer(is_dynamic=True)), model.inputs)
    (ours,) = outputs_of(quantized_by_us(model, our_quantizer(is_dynamic=True)), model.inputs)

    assert sqnr(theirs, ours) > 100


def test_dynamic_conv_stays_in_float() -> None:
    """The oracle quantizes a conv2d dynamically, too; we do not offer it yet, and no capability says so."""
    torch.manual_seed(0)
    model = SAME["conv"]()
    quantizer = our_quantizer(is_dynamic=True)
    theirs = quantized_by_oracle(model, oracle_quantizer(is_dynamic=True))

    assert outline(theirs) == ["conv2d(q, q, -)", "output(-)"]
    assert outline(quantized_by_us(model, quantizer)) == ["conv2d(-, -, -)", "output(-)"]
    assert not quantizer.quantization_capabilities().filter(nn.Conv2d)
