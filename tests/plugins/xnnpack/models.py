"""Models on which ours and ExecuTorch's quantizer agree, small, and each for one thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from plugins.oracle import Model
from strategies import Fn, normal


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
    """LayerNorm, self-attention with two heads, and a residual; with a mask where one is given."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = linear(), linear(), linear(), linear()
        self.norm = nn.LayerNorm(6)

    def _heads(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view(2, 4, 2, 3).transpose(1, 2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise, attend, project, add."""
        normal = self.norm(x)
        query, key, value = (self._heads(part(normal)) for part in (self.query, self.key, self.value))
        scores = query @ key.transpose(2, 3) / 3**0.5
        scores = scores if mask is None else scores + mask
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(2, 4, 6)
        return self.out(mixed) + x


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


def inverted_residual() -> Model:
    """A block of MobileNet: expand, depthwise, project, each with BatchNorm, and the input added."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu6(m.expand(x))
        return m.project(functional.relu6(m.depthwise(hidden))) + x

    parts = {
        "expand": nn.Sequential(conv(4, 8, 1, bias=False), batch_norm(8)),
        "depthwise": nn.Sequential(conv(8, 8, padding=1, groups=8, bias=False), batch_norm(8)),
        "project": nn.Sequential(conv(8, 4, 1, bias=False), batch_norm(4)),
    }
    return Model(Fn(run, **parts), (image(4),))


def classifier() -> Model:
    """Convolution, pool, and two linears."""
    layers = (conv(), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), linear(16), nn.ReLU(), linear(6, 3))
    return Model(nn.Sequential(*layers), (image(),))


def two_blocks() -> Model:
    """Two blocks of two linears with names of their own, and the input added."""

    def block() -> nn.Module:
        return nn.Sequential(linear(), nn.ReLU(), linear())

    return Model(Fn(lambda m, x: m.second(m.first(x)) + x, first=block(), second=block()), ROWS)


def after_linear(
    function: Callable[[torch.Tensor], torch.Tensor], *inputs: torch.Tensor
) -> Callable[[], Model]:
    """A linear, and a function of its output."""
    return lambda: Model(Fn(lambda m, x: function(m.fc(x)), fc=linear()), inputs or ROWS)


def after_conv(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], Model]:
    """A convolution, and a function of its output."""
    return lambda: Model(Fn(lambda m, x: function(m.conv(x)), conv=conv()), (image(),))


def after_add(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], Model]:
    """An addition, and a function of its output."""
    return lambda: Model(Fn(lambda m, x, y: function(x + y)), PAIR)


def joined(function: Callable[..., torch.Tensor]) -> Callable[[], Model]:
    """A function of the input and what three linears make of it."""
    parts = {"first": linear(), "second": linear(), "third": linear()}
    return lambda: Model(Fn(lambda m, x: function(x, m.first(x), m.second(x), m.third(x)), **parts), ROWS)


ROWS = (normal(3, 6),)
SEQUENCE = (normal(2, 4, 9),)
PAIR = (normal(2, 3, 4), normal(2, 3, 4, seed=1))
IDS = (torch.tensor([[0, 8, 3, 3], [5, 1, 7, 2]]),)

LINEARS: dict[str, Callable[[], Model]] = {
    "linear": lambda: Model(linear(), ROWS),
    "linear without bias": lambda: Model(linear(bias=False), ROWS),
    "linear relu": lambda: Model(nn.Sequential(linear(), nn.ReLU()), ROWS),
    "linear relu without bias": lambda: Model(nn.Sequential(linear(bias=False), nn.ReLU()), ROWS),
    "linear of one dimension": lambda: Model(linear(), (normal(6),)),
    "linear of three dimensions": lambda: Model(linear(), (normal(2, 3, 6),)),
    "linear bn": lambda: Model(nn.Sequential(linear(6, 4), batch_norm(4, nn.BatchNorm1d)), ROWS),
    "perceptron with dropout": lambda: Model(
        nn.Sequential(linear(), nn.ReLU(), nn.Dropout(), linear(), nn.ReLU(), linear()), ROWS
    ),
    "shared linear": lambda: Model(Fn(lambda m, x: m.fc(m.fc(m.fc(x))), fc=linear()), ROWS),
    "float between linears": lambda: Model(
        Fn(lambda m, x: m.last(functional.gelu(m.first(x))) + x, first=linear(), last=linear()), ROWS
    ),
    "gate": lambda: Model(
        Fn(lambda m, x: m.fc(x) * torch.sigmoid(m.gate(x)) + x, fc=linear(), gate=linear()), ROWS
    ),
    "attention": lambda: Model(Attention(), (normal(2, 4, 6),)),
    "embedding in float": lambda: Model(nn.Sequential(nn.Embedding(9, 6), linear()), IDS),
}

CONVOLUTIONS: dict[str, Callable[[], Model]] = {
    "conv": lambda: Model(conv(), (image(),)),
    "conv without bias": lambda: Model(conv(bias=False), (image(),)),
    "conv relu": lambda: Model(nn.Sequential(conv(), nn.ReLU()), (image(),)),
    "conv same padding": lambda: Model(conv(padding="same"), (image(),)),
    "conv reflect padding": lambda: Model(conv(padding=1, padding_mode="reflect"), (image(),)),
    "conv strided and dilated": lambda: Model(conv(stride=2, dilation=2, padding=2), (image(),)),
    "grouped conv": lambda: Model(conv(4, 6, groups=2), (image(4),)),
    "depthwise separable": lambda: Model(
        nn.Sequential(conv(4, 4, groups=4), batch_norm(), nn.ReLU(), conv(4, 4, 1)), (image(4),)
    ),
    "conv bn": lambda: Model(nn.Sequential(conv(), batch_norm()), (image(),)),
    "conv bn without affine": lambda: Model(
        nn.Sequential(conv(), nn.BatchNorm2d(4, affine=False)), (image(),)
    ),
    "conv bn relu": lambda: Model(nn.Sequential(conv(bias=False), batch_norm(), nn.ReLU()), (image(),)),
    "conv1d": lambda: Model(nn.Conv1d(4, 6, 3), SEQUENCE),
    "conv1d relu without bias": lambda: Model(
        nn.Sequential(nn.Conv1d(4, 6, 3, bias=False), nn.ReLU()), SEQUENCE
    ),
    "conv1d grouped and strided": lambda: Model(nn.Conv1d(4, 6, 3, 2, 1, groups=2), SEQUENCE),
    "conv1d bn relu": lambda: Model(
        nn.Sequential(nn.Conv1d(4, 4, 3), batch_norm(4, nn.BatchNorm1d), nn.ReLU(), nn.Conv1d(4, 4, 3)),
        SEQUENCE,
    ),
    "residual block": residual_block,
    "two branches": two_branches,
    "conv with two users": after_conv(lambda y: y.relu() + y),
    "silu between convs": lambda: Model(nn.Sequential(conv(), nn.SiLU(), conv(4, 4)), (image(),)),
}

ELEMENTWISE: dict[str, Callable[[], Model]] = {
    "add": lambda: Model(Fn(lambda m, x, y: x + y), PAIR),
    "add relu": lambda: Model(Fn(lambda m, x, y: (x + y).relu()), PAIR),
    "add to itself": lambda: Model(Fn(lambda m, x: x + x), ROWS),
    "add of a parameter": lambda: Model(Fn(lambda m, x: x + m.fc.bias, fc=linear()), ROWS),
    "add of a buffer": lambda: Model(Fn(lambda m, x: m.fc(x) + m.b, fc=linear(), b=normal(6)), ROWS),
    "add of a number": after_linear(lambda y: y + 3),
    "number plus tensor": after_linear(lambda y: 1 + y),
    "mul": lambda: Model(Fn(lambda m, x, y: x * y), PAIR),
    "mul with itself": after_linear(lambda y: y * y),
    "mul by a number": after_linear(lambda y: y * 0.5),
    "mul by a whole number": after_linear(lambda y: y * 2),
    "mul with a boolean mask": lambda: Model(Fn(lambda m, x: m.fc(x) * (x > 0), fc=linear()), ROWS),
}

JOINS: dict[str, Callable[[], Model]] = {
    "cat": lambda: Model(Fn(lambda m, x, y: torch.cat([x, y], 1)), PAIR),
    "cat of three": joined(lambda x, first, second, _: torch.cat([first, second, x], 1)),
    "cat of four, and relu": joined(lambda *all_four: torch.cat(all_four, 0).relu()),
    "cat of a cat": joined(lambda x, first, second, _: torch.cat([torch.cat([first, x], 1), second], 1)),
    "one tensor in two cats": joined(
        lambda x, first, second, _: torch.cat([first, x], 1) + torch.cat([x, second], 1)
    ),
    "cat of views": joined(lambda x, first, *_: torch.cat([first.view(6, 3), x.view(6, 3)], 1)),
    "cat with a buffer": lambda: Model(
        Fn(lambda m, x: torch.cat([m.fc(x), m.rows]), fc=linear(), rows=normal(2, 6)), ROWS
    ),
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
    "slices of one tensor, added": after_linear(lambda y: y[:, :3] + y[:, 3:]),
}

FOLLOWS_INPUT: dict[str, Callable[[], Model]] = {
    "relu behind a pool": after_conv(lambda y: functional.max_pool2d(y, 2).relu()),
    "hardtanh behind an add": after_add(functional.hardtanh),
    "max-pool of the input": lambda: Model(nn.Sequential(nn.MaxPool2d(2), conv(3, 4, 1)), (image(),)),
    "max-pool net": classifier,
    "max-pool in ceil mode": lambda: Model(
        nn.Sequential(conv(), nn.MaxPool2d(3, 2, ceil_mode=True)), (image(),)
    ),
    "average pool, which stays in float": after_conv(nn.AvgPool2d(2)),
    "average pool to a pixel": lambda: Model(nn.Sequential(conv(), nn.AdaptiveAvgPool2d((1, 1))), (image(),)),
    "average-pool head": lambda: Model(
        nn.Sequential(conv(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(4)), (image(),)
    ),
    "mean": after_conv(lambda y: y.mean((2, 3), keepdim=True)),
    "mean over the last dimensions": after_conv(lambda y: y.mean((-1, -2), keepdim=True)),
    "mean head": lambda: Model(
        Fn(
            lambda m, x: m.fc(m.conv(x).relu().mean((2, 3), keepdim=True).flatten(1)),
            conv=conv(),
            fc=linear(4),
        ),
        (image(),),
    ),
    "view": after_linear(lambda y: y.view(2, 9)),
    "reshape": after_linear(lambda y: y.reshape(-1, 2)),
    "flatten": after_conv(lambda y: y.flatten(1)),
    "permute": after_conv(lambda y: y.permute(0, 2, 3, 1)),
    "transpose": after_linear(lambda y: y.transpose(0, 1)),
    "slice": after_linear(lambda y: y[:, 1:4]),
    "dropout": after_linear(lambda y: functional.dropout(y, training=False)),
    "views between linears": views,
    "two outputs": lambda: Model(Fn(lambda m, x: (lambda y: (y, y.relu()))(m.fc(x)), fc=linear()), ROWS),
    "nothing to quantize": lambda: Model(nn.Sequential(nn.ReLU(), nn.Flatten()), PAIR[:1]),
}

#: What both quantize alike.
SAME = {**LINEARS, **CONVOLUTIONS, **ELEMENTWISE, **JOINS, **FOLLOWS_INPUT}

#: The same, written in place: it is quantized alike, and we write it functionally.
IN_PLACE: dict[str, Callable[[], Model]] = {
    "conv relu": lambda: Model(nn.Sequential(conv(3, 3), nn.ReLU(inplace=True), conv()), (image(),)),
    "linear relu": after_linear(torch.relu_),
    "add": joined(lambda x, first, *_: first.add_(x)),
    "add relu": joined(lambda x, first, *_: first.add_(x).relu_()),
    "mul": joined(lambda x, first, *_: first.mul_(x)),
    "add into a tensor that is read again": joined(lambda x, first, *_: first.add_(x) * first),
    "residual block": lambda: Model(
        Fn(
            lambda m, x: m.bn(m.conv(x)).add_(x).relu_(),
            conv=conv(4, 4, padding=1),
            bn=batch_norm(),
        ),
        (image(4),),
    ),
}
