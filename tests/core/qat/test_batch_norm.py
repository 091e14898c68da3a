"""BatchNorm in training: with what it is folded into it computes the formula, and converts to its bits."""

from __future__ import annotations

import copy
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
from strategies import Fn, Nothing, calls, normal
from trained import differences, train, trainable, values_of, weighted

#: A distance that rounding in another order makes, as a share of the largest value.
RELATIVE = 1e-5


@attrs.frozen
class Unit:
    """An operator, the BatchNorm behind it, and what comes after.

    Args:
        operator: the operator.
        norm: the BatchNorm.
        shape: of the input.
        relu: whether there is a ReLU at the end.
        skip: whether the input is added behind the BatchNorm.
    """

    operator: Callable[[], nn.Module]
    norm: Callable[[], nn.Module]
    shape: tuple[int, ...]
    relu: bool = False
    skip: bool = False

    def model(self) -> nn.Module:
        """The model, the same each time; its statistics and affine parameters are not those of a new one."""
        torch.manual_seed(0)
        operator, norm = self.operator(), self.norm()
        size = norm.num_features
        with torch.no_grad():
            norm.running_mean.copy_(normal(size, seed=1))
            norm.running_var.copy_(normal(size, seed=2).abs() + 0.2)
            if norm.affine:
                norm.weight.copy_(normal(size, seed=3))
                norm.bias.copy_(normal(size, seed=4))
        ending = self.ending
        return Fn(lambda self, x: ending(self.norm(self.operator(x)), x), operator=operator, norm=norm)

    def batch(self, seed: int) -> tuple[torch.Tensor]:
        """An input."""
        return (normal(*self.shape, seed=seed),)

    def ending(self, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The value with all that comes behind the BatchNorm."""
        value = value + x if self.skip else value
        return functional.relu(value) if self.relu else value


def conv(kind: str = "Conv2d", *sizes: int, **options: Any) -> Callable[[], nn.Module]:
    """A maker of convolutions."""
    return lambda: getattr(nn, kind)(*(sizes or (3, 4, 3)), **options)


def norm(dims: int = 2, size: int = 4, **options: Any) -> Callable[[], nn.Module]:
    """A maker of BatchNorms."""
    return lambda: getattr(nn, f"BatchNorm{dims}d")(size, **options)


UNITS = {
    "conv1d": Unit(conv("Conv1d"), norm(1, eps=1e-3), (4, 3, 8), relu=True),
    "conv2d": Unit(conv(), norm(eps=1e-5), (2, 3, 8, 8)),
    "conv2d, eps 1e-2": Unit(conv(bias=False), norm(eps=1e-2, momentum=0.01), (2, 3, 8, 8), relu=True),
    "conv2d, eps 1e-4, same": Unit(conv(padding="same"), norm(eps=1e-4), (2, 3, 8, 8)),
    "conv2d, skip": Unit(conv("Conv2d", 4, 4, 3, padding=1), norm(eps=1e-3), (2, 4, 6, 6), skip=True),
    "conv2d, skip, relu": Unit(
        conv("Conv2d", 4, 4, 3, padding=1, bias=False), norm(), (2, 4, 6, 6), relu=True, skip=True
    ),
    "conv2d, strided, dilated": Unit(conv(stride=2, dilation=2), norm(momentum=0.5), (2, 3, 9, 9)),
    "conv2d, not affine": Unit(conv(), norm(eps=1e-3, affine=False), (2, 3, 8, 8), relu=True),
    "conv2d, momentum 1": Unit(conv(), norm(momentum=1.0), (2, 3, 8, 8)),
    "depthwise": Unit(conv("Conv2d", 4, 4, 3, groups=4, bias=False), norm(eps=1e-3), (2, 4, 8, 8), relu=True),
    "grouped": Unit(conv("Conv2d", 4, 6, 3, groups=2), norm(2, 6), (2, 4, 8, 8)),
    "conv3d": Unit(conv("Conv3d", 2, 3, 2), norm(3, 3, eps=1e-3), (2, 2, 4, 4, 4)),
    "transposed 1d": Unit(conv("ConvTranspose1d", 3, 4, 3, stride=2), norm(1, eps=1e-2), (4, 3, 5)),
    "transposed 2d": Unit(conv("ConvTranspose2d", bias=False), norm(eps=1e-4), (2, 3, 5, 5), relu=True),
    "transposed 2d, grouped": Unit(
        conv("ConvTranspose2d", 4, 6, 3, stride=2, output_padding=1, groups=2), norm(2, 6), (2, 4, 5, 5)
    ),
    "transposed 2d, depthwise": Unit(conv("ConvTranspose2d", 4, 4, 3, groups=4), norm(), (2, 4, 5, 5)),
    "transposed 3d, grouped": Unit(
        conv("ConvTranspose3d", 4, 2, 2, groups=2), norm(3, 2, eps=1e-3), (2, 4, 3, 3, 3)
    ),
    "linear": Unit(conv("Linear", 5, 4), norm(1, eps=1e-3), (6, 5), relu=True),
    "linear, no bias": Unit(conv("Linear", 5, 4, bias=False), norm(1), (6, 5)),
}


modes = pytest.mark.parametrize("training", [True, False], ids=["in training", "in evaluation"])
each_unit = pytest.mark.parametrize("name", UNITS)


@modes
@each_unit
def test_evaluation_of_what_was_trained_is_the_converted_model(name: str, training: bool) -> None:
    """The same bits, for each operator, eps and momentum, and for both modes of export."""
    unit = UNITS[name]
    model = trainable(unit.model(), unit.batch(0), weighted(), training=training)
    train(model, [unit.batch(seed) for seed in range(3)])

    assert differences(model, unit.batch(3)) == [0.0]


# --- The formula --------------------------------------------------------------------------------------------


class Unfolded(nn.Module):
    """``y = batch_norm(conv(x, fq(W * s) / s, b))`` in plain PyTorch, with the parameters of a model."""

    def __init__(self, unit: Unit) -> None:
        super().__init__()
        held = unit.model()
        self.unit, self.operator, self.norm = unit, held.operator, held.norm

    def factor(self) -> torch.Tensor:
        """The factor of each output channel, in the shape of the weight."""
        weight, norm = self.operator.weight, self.norm
        found = 1 / (norm.running_var + norm.eps).sqrt()
        found = found if norm.weight is None else found * norm.weight
        found = torch.where(found == 0, torch.ones(()), found)
        if "Transpose" not in type(self.operator).__name__:
            return found.reshape(-1, *[1] * (weight.dim() - 1))
        groups = self.operator.groups
        rows = found.reshape(groups, 1, -1).expand(groups, weight.shape[0] // groups, weight.shape[1])
        return rows.reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))

    def rounded(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight, fake quantized per channel, with torch's own operator."""
        axis = int("Transpose" in type(self.operator).__name__)
        largest = weight.detach().transpose(0, axis).flatten(1).abs().amax(1)
        zeros = torch.zeros_like(largest, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, largest / 127, zeros, axis, -127, 127)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve with the rounded weight, normalise with the statistics of the batch."""
        factor = self.factor()
        weight = self.rounded(self.operator.weight * factor) / factor
        value = torch.func.functional_call(self.operator, {"weight": weight}, (x,))
        return self.unit.ending(self.norm(value), x)


def is_near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether no element is further away than a share of the largest."""
    largest = float(expected.detach().abs().max())
    return float((found - expected).detach().abs().max()) <= RELATIVE * max(largest, 1e-6)


@cache
def one_pass(name: str) -> tuple[GraphModule, Unfolded, torch.Tensor, torch.Tensor]:
    """A unit with a rounded weight and its formula, after one pass forward and back, and their outputs."""
    unit = UNITS[name]
    model = trainable(unit.model(), unit.batch(0), weighted(activations=False))
    plain = Unfolded(unit).train()
    outputs = model(*unit.batch(1)), plain(*unit.batch(1))
    for output in outputs:
        (output * normal(*output.shape, seed=5)).sum().backward()
    return model, plain, *outputs


@each_unit
def test_training_computes_the_formula(name: str) -> None:
    """The output is that of plain PyTorch, to 1e-5 of its largest value."""
    _, _, found, expected = one_pass(name)
    assert is_near(found, expected)


@each_unit
def test_gradients_are_those_of_the_formula(name: str) -> None:
    """Of the weight, the bias, gamma and beta; a bias before a BatchNorm has none but for rounding."""
    model, plain, output, _ = one_pass(name)
    found, expected = dict(model.named_parameters()), dict(plain.named_parameters())
    assert sorted(found) == sorted(expected)
    for key, parameter in expected.items():
        assert parameter.grad is not None
        assert found[key].grad is not None
        if key == "operator.bias":
            assert float(found[key].grad.abs().max()) < 1e-4 * output.numel() ** 0.5
        else:
            assert is_near(found[key].grad, parameter.grad), key


@each_unit
def test_running_statistics_are_those_of_a_plain_batch_norm(name: str) -> None:
    """The mean with the bias in it, the variance, and the number of batches; eval() keeps them."""
    model, plain, _, _ = one_pass(name)
    found, expected = dict(model.named_buffers()), dict(plain.named_buffers())
    for key in ("norm.running_mean", "norm.running_var"):
        assert is_near(found[key], expected[key])
    assert int(found["norm.num_batches_tracked"]) == 1
    before = {key: value.clone() for key, value in model.named_buffers()}
    values_of(model.eval(), UNITS[name].batch(2))
    model.train()
    norms = [key for key in before if key.startswith("norm.")]
    assert len(norms) == 3
    assert all(torch.equal(before[key], model.get_buffer(key)) for key in norms)


# --- Where gamma is zero, and where statistics are frozen ---------------------------------------------------


def test_gamma_that_begins_as_zero_trains() -> None:
    """As in the last BatchNorm of a residual branch: its gradient is that of the formula, and it moves."""
    unit = UNITS["conv2d, skip"]
    start, plain = unit.model(), Unfolded(unit).train()
    with torch.no_grad():
        start.norm.weight.zero_()
        plain.norm.weight.zero_()
    model = trainable(start, unit.batch(0), weighted(activations=False))
    assert is_near(model(*unit.batch(1)), plain(*unit.batch(1)))

    optimizers = [torch.optim.SGD(one.parameters(), 0.1) for one in (model, plain)]
    for seed in range(3):
        for one, optimizer in zip((model, plain), optimizers, strict=True):
            optimizer.zero_grad()
            (one(*unit.batch(seed)) * normal(*unit.shape, seed=9)).mean().backward()
            optimizer.step()
    gamma = model.get_parameter("norm.weight")
    assert bool((gamma != 0).all())
    assert torch.allclose(gamma, plain.norm.weight, atol=1e-5)
    assert differences(model, unit.batch(4)) == [0.0]


def test_some_channels_with_a_gamma_of_zero_convert_to_what_was_trained() -> None:
    """Evaluation folds the zero in, as convert does."""
    unit = UNITS["depthwise"]
    start = unit.model()
    with torch.no_grad():
        start.norm.weight[::2] = 0
    model = trainable(start, unit.batch(0), weighted())
    model.get_parameter("norm.weight").requires_grad_(False)
    train(model, [unit.batch(0), unit.batch(1)])
    assert bool((model.get_parameter("norm.weight")[::2] == 0).all())
    assert differences(model, unit.batch(2)) == [0.0]


@pytest.mark.parametrize(
    "name", ["conv1d", "transposed 2d, grouped", "linear, no bias", "conv2d, not affine"]
)
def test_a_frozen_batch_norm_computes_with_running_statistics(name: str) -> None:
    """Training returns what evaluation does, near rounding; statistics stay; parameters go on learning."""
    unit = UNITS[name]
    model = trainable(unit.model(), unit.batch(0), weighted(activations=False))
    train(model, [unit.batch(0)])
    tq.qat.freeze_batch_norm(model)
    before = {key: model.get_buffer(f"norm.{key}").clone() for key in ("running_mean", "running_var")}
    weight = model.get_parameter("operator.weight").detach().clone()
    (in_training,) = values_of(model.train(), unit.batch(1))
    (in_evaluation,) = values_of(model.eval(), unit.batch(1))
    assert is_near(in_training, in_evaluation)

    train(model, [unit.batch(2)])
    assert all(torch.equal(value, model.get_buffer(f"norm.{key}")) for key, value in before.items())
    assert not torch.equal(weight, model.get_parameter("operator.weight"))
    assert differences(model, unit.batch(3)) == [0.0]

    tq.qat.unfreeze_batch_norm(model)
    train(model, [unit.batch(2)])
    assert not torch.equal(before["running_mean"], model.get_buffer("norm.running_mean"))


def test_batch_norms_are_frozen_by_the_names_of_their_modules() -> None:
    """A pattern is about the paths of the float model; the others go on."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    x = (normal(2, 3, 8, 8),)
    prepared = trainable(model, x, weighted())
    tq.qat.freeze_batch_norm(prepared, "3")
    train(prepared, [x])
    assert int(prepared.get_buffer("1.num_batches_tracked")) == 1
    assert int(prepared.get_buffer("3.num_batches_tracked")) == 0
    assert torch.equal(prepared.get_buffer("3.running_mean"), torch.zeros(4))


def test_a_cumulative_average_is_warned_of() -> None:
    """Export writes a momentum of 0 for it, with which statistics would never move, without a word."""
    unit = attrs.evolve(UNITS["conv2d"], norm=norm(momentum=None))
    with pytest.warns(UserWarning, match="norm: the momentum is 0"):
        model = trainable(unit.model(), unit.batch(0), weighted(), training=False)
    train(model, [unit.batch(0)])
    assert differences(model, unit.batch(1)) == [0.0]


# --- BatchNorms that are not folded -------------------------------------------------------------------------


def shared_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    """One BatchNorm behind two convolutions: folded into each, as it is when nothing is trained."""
    return self.norm(self.one(x)) + self.norm(self.two(x))


def shared_conv(self: Any, x: torch.Tensor) -> torch.Tensor:
    """One convolution, called twice, with a BatchNorm each: folded into each call."""
    return self.norm(self.one(x)) + self.other(self.one(x * 0.5))


def two_users(self: Any, x: torch.Tensor) -> torch.Tensor:
    """A convolution that a BatchNorm reads, and somebody else."""
    value = self.one(x)
    return self.norm(value) + value


def after_another(self: Any, x: torch.Tensor) -> torch.Tensor:
    """A BatchNorm behind a BatchNorm."""
    return self.other(self.norm(self.one(x)))


def before(self: Any, x: torch.Tensor) -> torch.Tensor:
    """A BatchNorm before a convolution."""
    return self.one(self.first(x))


#: Function → how many BatchNorms are left of those that it calls, and the modules that it has.
WIRED = {
    shared_norm: (0, ("one", "two", "norm")),
    shared_conv: (0, ("one", "norm", "other")),
    two_users: (1, ("one", "norm")),
    after_another: (1, ("one", "norm", "other")),
    before: (1, ("one", "first")),
}
each_wiring = pytest.mark.parametrize("wired", WIRED, ids=lambda one: one.__name__)


def wiring(wired: Callable[..., Any]) -> nn.Module:
    """A model with BatchNorms that cannot be folded, or that share something."""
    torch.manual_seed(0)
    parts = {
        "one": nn.Conv2d(3, 4, 3),
        "two": nn.Conv2d(3, 4, 3),
        "norm": nn.BatchNorm2d(4, eps=1e-3, momentum=0.3),
        "other": nn.BatchNorm2d(4, eps=1e-2),
        "first": nn.BatchNorm2d(3, eps=1e-3),
    }
    return Fn(wired, **{name: parts[name] for name in WIRED[wired][1]})


@modes
@each_wiring
def test_batch_norms_train_as_in_float_where_nothing_is_rounded(
    wired: Callable[..., Any], training: bool
) -> None:
    """Folded or not: outputs, parameters after three steps, statistics and counters are the float model's."""
    x = (normal(2, 3, 8, 8),)
    model, plain = trainable(wiring(wired), x, Nothing(), training=training), wiring(wired).train()
    optimizers = [torch.optim.SGD(one.parameters(), 0.05) for one in (model, plain)]
    for seed in range(3):
        outputs = []
        for one, optimizer in zip((model, plain), optimizers, strict=True):
            optimizer.zero_grad()
            outputs.append(one(normal(2, 3, 8, 8, seed=seed)))
            outputs[-1].square().mean().backward()
            optimizer.step()
        assert is_near(*outputs)
    found, expected = model.state_dict(), plain.state_dict()
    for key, value in expected.items():
        assert torch.allclose(found[key].float(), value.float(), rtol=1e-4, atol=1e-5), key
    assert differences(model, x) == [0.0]


@modes
@each_wiring
def test_beside_quantized_operators_they_convert_to_what_was_trained(
    wired: Callable[..., Any], training: bool
) -> None:
    """Those that cannot be folded are there after convert; evaluation is the converted model, bit for bit."""
    x = (normal(2, 3, 8, 8),)
    model = trainable(wiring(wired), x, weighted(), training=training)
    train(model, [(normal(2, 3, 8, 8, seed=seed),) for seed in range(3)])
    assert differences(model, x) == [0.0]
    assert len(calls(tq.convert_pt2e(model), "batch_norm")) == WIRED[wired][0]


def test_a_batch_norm_behind_two_convolutions_computes_the_formula() -> None:
    """Both weights have the factor of the statistics before the batch; the second call sees them moved."""
    x, start, plain = normal(2, 3, 8, 8), wiring(shared_norm), wiring(shared_norm).train()
    model = trainable(start, (x,), weighted(activations=False))
    unit = attrs.evolve(UNITS["conv2d"], norm=norm(eps=1e-3, momentum=0.3))
    one, two = Unfolded(unit), Unfolded(unit)
    one.operator, two.operator, one.norm, two.norm = plain.one, plain.two, plain.norm, plain.norm
    factors = one.factor().detach(), two.factor().detach()
    one.factor, two.factor = (lambda: factors[0]), (lambda: factors[1])  # type: ignore[method-assign]
    found, expected = model(x), one(x) + two(x)
    assert is_near(found, expected)
    for key, value in plain.named_buffers():
        assert torch.allclose(model.get_buffer(key), value, rtol=1e-5)


def test_a_copy_of_a_model_trains_by_itself() -> None:
    """A copy shares nothing with the model, not even between forward and backward."""
    unit = UNITS["conv2d"]
    model = trainable(unit.model(), unit.batch(0), weighted())
    train(model, [unit.batch(0)])
    other = copy.deepcopy(model)
    before_step = other.get_parameter("operator.weight").detach().clone()
    train(model, [unit.batch(1)])
    assert torch.equal(other.get_parameter("operator.weight"), before_step)
    train(other, [unit.batch(1)])
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
