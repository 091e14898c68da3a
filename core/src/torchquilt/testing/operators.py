"""Ways to call each operator that torchquilt knows: the plain one first, then those that a row may not take.

A call is made for the activation that it will be given, so that shapes fit in a chain. Sizes come from
:class:`Sizes`: fixed where a model for a row is looked for, drawn by hypothesis where limits are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import attrs
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from torchquilt.support.operators import Operator


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers between -0.5 and 1.0, the same for the same shape and seed.

    Their mean is not zero, so that sums do not cancel: an error is measured against a signal.
    """
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 1.5 - 0.5


class Sizes:
    """Source of the sizes of models.

    Args:
        pick: a whole number between two, both included.
        group: size of the groups of a weight; the number of features is a multiple of it, or not if drawn.
    """

    def __init__(self, pick: Callable[[int, int], int] | None = None, group: int = 1) -> None:
        self._pick = pick
        self.group = group

    def between(self, low: int, high: int) -> int:
        """A size; the lower of the two where sizes are fixed."""
        return low if self._pick is None else self._pick(low, high)

    def features(self) -> int:
        """A number of features."""
        if self.group == 1:
            return self.between(8, 19)
        strays = self.between(0, 1)  # with 1 it does not divide into groups
        return 2 * self.group + strays


@attrs.frozen(eq=False)
class Call:
    """One operator, called in one way.

    Args:
        label: what is particular about it, empty for the plain call.
        function: takes the activation and the extras.
        extras: further inputs of the model that it needs.
        has_constant_weight: its weight and bias, if any, are constants of the model.
    """

    label: str
    function: Callable[..., torch.Tensor]
    extras: tuple[torch.Tensor, ...] = ()
    has_constant_weight: bool = True


Calls: TypeAlias = "Callable[[torch.Tensor, Sizes], list[Call]]"
Activations: TypeAlias = "Callable[[Sizes], list[torch.Tensor]]"


def calls_of(operator: Operator, activation: torch.Tensor, sizes: Sizes) -> list[Call]:
    """Ways to call an operator with an activation of this shape; none where the kit does not know it."""
    known = _KNOWN.get(operator.overloads[0])
    return known[1](activation, sizes) if known else []


def activations_of(operator: Operator, sizes: Sizes) -> list[torch.Tensor]:
    """Activations to call an operator with, the most usual first."""
    known = _KNOWN.get(operator.overloads[0])
    return known[0](sizes) if known else []


# --- Activations --------------------------------------------------------------------------------------------


def _rows(sizes: Sizes) -> list[torch.Tensor]:
    batch, features = sizes.between(4, 7), sizes.features()
    return [
        uniform(batch, features),
        uniform(2, batch, features),
        uniform(features),
        uniform(batch, features + 1),
    ]


def _signals(sizes: Sizes) -> list[torch.Tensor]:
    channels, length = 2 * sizes.between(1, 3), sizes.between(6, 11)
    return [uniform(2, channels, length), uniform(channels, length)]


def _images(sizes: Sizes) -> list[torch.Tensor]:
    channels, height, width = 2 * sizes.between(1, 3), sizes.between(4, 7), sizes.between(4, 7)
    batches = uniform(2, channels, height, width), uniform(1, channels, height, width)
    return [*batches, uniform(channels, height, width)]


def _volumes(sizes: Sizes) -> list[torch.Tensor]:
    channels, depth, width = 2 * sizes.between(1, 3), sizes.between(3, 5), sizes.between(3, 5)
    return [uniform(2, channels, depth, 4, width), uniform(channels, depth, 4, width)]


def _anything(sizes: Sizes) -> list[torch.Tensor]:
    floats = [*_rows(sizes)[:2], _images(sizes)[0]]
    return [*floats, torch.arange(12).reshape(3, 4), uniform()]  # the last one has no dimension


def _with_a_one(sizes: Sizes) -> list[torch.Tensor]:
    batch, features = sizes.between(4, 7), sizes.between(6, 9)
    return [uniform(batch, 1, features), uniform(1, batch, 1, features)]


_VOCABULARY = 10


def _tokens(sizes: Sizes) -> list[torch.Tensor]:
    tokens = torch.arange(2 * sizes.between(4, 7)) % _VOCABULARY
    return [tokens, tokens.reshape(2, -1), tokens.int()]


# --- Calls --------------------------------------------------------------------------------------------------


def _filled(module: nn.Module) -> nn.Module:
    """A module whose parameters are like the data, see :func:`uniform`."""
    for seed, parameter in enumerate(module.parameters(), start=1):
        parameter.data = uniform(*parameter.shape, seed=seed)
    return module


def _linear(x: torch.Tensor, sizes: Sizes) -> list[Call]:
    features, outputs = x.shape[-1], sizes.between(5, 17)
    return [
        Call("", _filled(nn.Linear(features, outputs))),
        Call("no bias", _filled(nn.Linear(features, outputs, bias=False))),
        Call("weight of one dimension", _Product(F.linear, uniform(features, seed=1))),
        Call(
            "weight is an input", F.linear, (uniform(outputs, features, seed=1),), has_constant_weight=False
        ),
    ]


def _convolution(
    layer: type[nn.Conv1d | nn.Conv2d | nn.Conv3d], function: Callable[..., torch.Tensor], rank: int
) -> Calls:
    def calls(x: torch.Tensor, sizes: Sizes) -> list[Call]:
        channels, outputs = x.shape[-1 - rank], 2 * sizes.between(2, 4)
        weight = uniform(outputs, channels, *[3] * rank, seed=1)
        return [
            Call("", _filled(layer(channels, outputs, 3))),
            Call("strided, padded, no bias", _filled(layer(channels, outputs, 3, 2, 1, bias=False))),
            Call("depthwise", _filled(layer(channels, 2 * channels, 3, groups=channels))),
            Call("padding='same'", _filled(layer(channels, outputs, 3, padding="same"))),
            Call("pointwise", _filled(layer(channels, outputs, 1))),
            Call(
                "padding='same', even kernel",
                _filled(layer(channels, outputs, 2, padding="same", bias=False)),
            ),
            Call("weight is an input", function, (weight,), has_constant_weight=False),
        ]

    return calls


def _transposed(
    layer: type[nn.ConvTranspose1d | nn.ConvTranspose2d], function: Callable[..., torch.Tensor], rank: int
) -> Calls:
    def calls(x: torch.Tensor, sizes: Sizes) -> list[Call]:
        channels, outputs = x.shape[-1 - rank], 2 * sizes.between(2, 4)
        weight = uniform(channels, outputs, *[3] * rank, seed=1)
        return [
            Call("", _filled(layer(channels, outputs, 3))),
            Call("in groups", _filled(layer(channels, outputs, 3, groups=2))),
            Call("strided, padded, no bias", _filled(layer(channels, outputs, 3, 2, 1, 1, bias=False))),
            Call("weight is an input", function, (weight,), has_constant_weight=False),
        ]

    return calls


class _Product(nn.Module):
    """A constant that something is multiplied with, and one that is added."""

    def __init__(
        self, function: Callable[..., torch.Tensor], weight: torch.Tensor, *bias: torch.Tensor
    ) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(weight)
        self.bias = nn.ParameterList(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply, and add."""
        return self.function(*self.bias, x, self.weight)


def _addmm(x: torch.Tensor, sizes: Sizes) -> list[Call]:
    features, outputs = x.shape[-1], sizes.between(5, 17)
    weight, bias = uniform(features, outputs, seed=1), uniform(outputs, seed=2)
    wide = uniform(x.shape[0], outputs, seed=2)
    return [
        Call("", _Product(torch.addmm, weight, bias)),
        Call("bias of one number", _Product(torch.addmm, weight, uniform(1, seed=2))),
        Call("bias of each sample", _Product(torch.addmm, weight, wide)),
        Call("alpha=2", _Product(lambda *args: torch.addmm(*args, alpha=2), weight, bias)),
        Call(
            "weight is an input", lambda x, w: torch.addmm(w[0], x, w), (weight,), has_constant_weight=False
        ),
    ]


def _matmul(x: torch.Tensor, sizes: Sizes) -> list[Call]:
    features, outputs = x.shape[-1], sizes.between(5, 17)
    weight = uniform(features, outputs, seed=1)
    return [
        Call("", _Product(torch.matmul, weight)),
        Call("in batches", _Product(torch.matmul, uniform(2, features, outputs, seed=1))),
        Call("weight is an input", torch.matmul, (weight,), has_constant_weight=False),
    ]


def _embedding(_: torch.Tensor, sizes: Sizes) -> list[Call]:
    width = sizes.features()
    weight = uniform(_VOCABULARY, width, seed=1)

    def look_up(tokens: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return F.embedding(tokens, table)

    return [
        Call("", _filled(nn.Embedding(_VOCABULARY, width))),
        Call("padding_idx=0", _filled(nn.Embedding(_VOCABULARY, width, padding_idx=0))),
        Call("weight is an input", look_up, (weight,), has_constant_weight=False),
    ]


def _binary(function: Callable[..., torch.Tensor]) -> Calls:
    def calls(x: torch.Tensor, _: Sizes) -> list[Call]:
        other = uniform(*x.shape, seed=1)
        found = [
            Call("", function, (other,)),
            Call("broadcast", function, (other[..., :1] if x.dim() else other,)),
            Call("with a number", lambda x: function(x, 0.75)),
            Call("with itself", lambda x: function(x, x)),
            Call("with -1e9", lambda x: function(x, -1e9)),
            Call("before softmax", lambda x, y: torch.softmax(function(x, y), -1), (other,)),
        ]
        if function in (torch.add, torch.sub):
            found.append(Call("alpha=2", lambda x, y: function(x, y, alpha=2), (other,)))
        return found

    return calls


def _cat(x: torch.Tensor, _: Sizes) -> list[Call]:
    other = uniform(*x.shape, seed=1)
    return [
        Call("", lambda x, y: torch.cat([x, y]), (other,)),
        Call("three, last dimension", lambda x, y, z: torch.cat([x, y, z], -1), (other, other + 0.25)),
        # As at a decoder's first step, whose cache is empty.
        Call("behind an empty one", lambda x, none: torch.cat([none, x]), (x.new_empty(0, *x.shape[1:]),)),
        Call(
            "two and an empty one",
            lambda x, none: torch.cat([none, x, 1.7 * x]),
            (x.new_empty(0, *x.shape[1:]),),
        ),
        Call("with itself", lambda x: torch.cat([x, x])),
    ]


def _with_number(function: Callable[..., torch.Tensor], **others: Callable[..., torch.Tensor]) -> Calls:
    """Calls with a number on one side, and those that the ranges of numbers forbid."""
    return _one(
        function,
        before_softmax=lambda x: torch.softmax(function(x), -1),
        before_an_inverse=lambda x: torch.reciprocal(function(x)),
        **others,
    )


def _div(x: torch.Tensor, sizes: Sizes) -> list[Call]:
    by_tensor = Call("by a tensor", torch.div, (uniform(*x.shape, seed=1) + 2,))
    return [*_with_number(lambda x: x / 0.75)(x, sizes), by_tensor]


def _stack(x: torch.Tensor, _: Sizes) -> list[Call]:
    other = uniform(*x.shape, seed=1)
    return [
        Call("", lambda x, y: torch.stack([x, y]), (other,)),
        Call("last dimension", lambda x, y: torch.stack([x, y], -1), (other,)),
        Call("with itself", lambda x: torch.stack([x, x])),
    ]


def _joining(function: Callable[..., torch.Tensor]) -> Calls:
    def calls(x: torch.Tensor, _: Sizes) -> list[Call]:
        other = uniform(*x.shape, seed=1)
        return [
            Call("", lambda x, y: function([x, y]), (other,)),
            Call("three", lambda x, y, z: function([x, y, z]), (other, other + 0.25)),
            Call("vectors", lambda x, y: function([x.flatten(), y.flatten()]), (other,)),
            Call("of different ranks", lambda x, y: function([x.flatten(1), y.flatten(1)[:, 0]]), (other,)),
            Call("with itself", lambda x: function([x, x])),
        ]

    return calls


def _pad(x: torch.Tensor, _: Sizes) -> list[Call]:
    found = [
        Call("", lambda x: F.pad(x, (1, 0))),
        Call("with ones", lambda x: F.pad(x, (1, 0), value=1.0)),
        Call("cut off", lambda x: F.pad(x, (-1, 1))),
    ]
    if x.dim() > 2:
        found.append(Call("channels", lambda x: F.pad(x, (*[0, 0] * (x.dim() - 2), 1, 1))))
    return found


def _one(function: Callable[..., Any], **others: Callable[..., Any]) -> Calls:
    """Calls that need the activation and nothing else; the labels of the others as keywords."""

    def calls(_: torch.Tensor, __: Sizes) -> list[Call]:
        labelled = [Call(label.replace("_", " "), other) for label, other in others.items()]
        return [Call("", function), *labelled]

    return calls


def _activation(function: Callable[..., Any], in_place: Callable[..., Any]) -> Calls:
    return _one(function, in_place=lambda x: in_place(x.clone()))


def _bounds(x: torch.Tensor) -> tuple[float, float]:
    """Bounds that cut off a tenth of the activation at either end."""
    low, high = x.double().quantile(torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
    return low, high


def _hardtanh(x: torch.Tensor, _: Sizes) -> list[Call]:
    low, high = _bounds(x)
    return [Call("", lambda x: F.hardtanh(x, low, high)), Call("between -1 and 1", F.hardtanh)]


def _clamp(x: torch.Tensor, _: Sizes) -> list[Call]:
    low, high = _bounds(x)
    return [
        Call("", lambda x: torch.clamp(x, low, high)),
        Call("min only", lambda x: torch.clamp(x, min=low)),
        Call("max only", lambda x: torch.clamp(x, max=high)),
    ]


def _mean(x: torch.Tensor, _: Sizes) -> list[Call]:
    over_image = x.dim() == 4
    found = [
        Call("", lambda x: x.mean((2, 3), keepdim=True)),
        Call("last two, counted from the end", lambda x: x.mean((-1, -2), keepdim=True)),
        Call("keepdim=False", lambda x: x.mean((2, 3))),
    ]
    return [*(found if over_image else []), Call("one dimension", lambda x: x.mean(-1, keepdim=True))]


def _where(x: torch.Tensor, _: Sizes) -> list[Call]:
    other, is_kept = uniform(*x.shape, seed=1), uniform(*x.shape, seed=2) > 0.25
    return [
        Call("", lambda x, y, kept: torch.where(kept, x, y), (other, is_kept)),
        Call("with a number", lambda x, kept: torch.where(kept, x, torch.tensor(0.75)), (is_kept,)),
        Call("with -1e9", lambda x, kept: torch.where(kept, x, torch.tensor(-1e9)), (is_kept,)),
        Call(
            "before softmax",
            lambda x, y, kept: torch.softmax(torch.where(kept, x, y), -1),
            (other, is_kept),
        ),
    ]


# Of pooling the last way has dynamic shapes as well (examples_of), on which its ceil mode depends.


def _max_pool(function: Callable[..., Any]) -> Calls:
    return _one(
        lambda x: function(x, 2),
        overlapping=lambda x: function(x, 3, 2, 1),
        skipping_pixels=lambda x: function(x, 1, 2),
        dilated=lambda x: function(x, 2, 1, 0, dilation=2),
        ceil_mode=lambda x: function(x, 3, 2, 1, ceil_mode=True),
    )


def _avg_pool(function: Callable[..., Any]) -> Calls:
    return _one(
        lambda x: function(x, 2),
        padded=lambda x: function(x, 3, 2, 1),
        padding_not_counted=lambda x: function(x, 3, 2, 1, count_include_pad=False),
        skipping_pixels=lambda x: function(x, 1, 2),
        ceil_mode=lambda x: function(x, 3, 2, 1, ceil_mode=True),
    )


def _avg_pool_of_image(x: torch.Tensor, sizes: Sizes) -> list[Call]:
    another = Call("another divisor", lambda x: F.avg_pool2d(x, 2, divisor_override=3))
    *first, last = _avg_pool(F.avg_pool2d)(x, sizes)
    return [*first, another, last]


def _squeeze(x: torch.Tensor, _: Sizes) -> list[Call]:
    one = list(x.shape).index(1) if 1 in x.shape else 0
    return [
        Call("", lambda x: x.squeeze(one)),
        Call("a tuple", lambda x: x.squeeze((one,))),
        Call("no dimension named", lambda x: x.squeeze()),
    ]


def _pixel_shuffle(x: torch.Tensor, _: Sizes) -> list[Call]:
    other = uniform(*x.shape, seed=1)  # so that the channels are a multiple of four
    return [Call("", lambda x, y: F.pixel_shuffle(torch.cat([x, y], 1), 2), (other,))]


def _unsqueeze(x: torch.Tensor, _: Sizes) -> list[Call]:
    rank = x.dim()
    return [
        Call("", lambda x: x.unsqueeze(-1)),
        Call("last, counted from the start", lambda x: x.unsqueeze(rank)),
        Call("first", lambda x: x.unsqueeze(0)),
    ]


_KNOWN: dict[str, tuple[Activations, Calls]] = {
    "aten.linear.default": (_rows, _linear),
    "aten.conv1d.default": (_signals, _convolution(nn.Conv1d, F.conv1d, 1)),
    "aten.conv2d.default": (_images, _convolution(nn.Conv2d, F.conv2d, 2)),
    "aten.conv3d.default": (_volumes, _convolution(nn.Conv3d, F.conv3d, 3)),
    "aten.conv_transpose1d.default": (_signals, _transposed(nn.ConvTranspose1d, F.conv_transpose1d, 1)),
    "aten.conv_transpose2d.input": (_images, _transposed(nn.ConvTranspose2d, F.conv_transpose2d, 2)),
    "aten.addmm.default": (lambda sizes: _rows(sizes)[::3], _addmm),
    "aten.matmul.default": (_rows, _matmul),
    "aten.sub.Tensor": (_anything, _binary(torch.sub)),
    "aten.rsub.Scalar": (
        _anything, _with_number(lambda x: 0.75 - x, alpha_is_2=lambda x: torch.rsub(x, 0.75, alpha=2))
    ),
    "aten.div.Tensor": (_anything, _div),
    "aten.stack.default": (_anything, _stack),
    "aten.pad.default": (lambda sizes: [*_images(sizes)[:1], *_signals(sizes)[:1], *_anything(sizes)], _pad),
    "aten.contiguous.default": (_anything, _one(lambda x: x.transpose(0, 1).contiguous(), clone=torch.clone)),
    "aten.to.dtype": (
        _anything, _one(lambda x: x.to(torch.float32))
    ),
    "aten.t.default": (lambda sizes: _rows(sizes)[::2][:2], _one(torch.t)),
    "aten.select.int": (_anything, _one(lambda x: x[1], last=lambda x: x[..., -1])),
    "aten.embedding.default": (_tokens, _embedding),
    "aten.add.Tensor": (_anything, _binary(torch.add)),
    "aten.mul.Tensor": (_anything, _binary(torch.mul)),
    "aten.cat.default": (_anything, _cat),
    "aten.relu.default": (_anything, _activation(torch.relu, torch.relu_)),
    "aten.relu6.default": (_anything, _activation(F.relu6, nn.ReLU6(inplace=True))),
    "aten.hardtanh.default": (_anything, _hardtanh),
    "aten.clamp.default": (_anything, _clamp),
    "aten.leaky_relu.default": (_anything, _activation(lambda x: F.leaky_relu(x, 0.2), F.leaky_relu_)),
    "aten.sigmoid.default": (_anything, _activation(torch.sigmoid, torch.sigmoid_)),
    "aten.silu.default": (_anything, _activation(F.silu, nn.SiLU(inplace=True))),
    "aten.hardswish.default": (_anything, _activation(F.hardswish, nn.Hardswish(inplace=True))),
    "aten.gelu.default": (_anything, _one(F.gelu, approximated=lambda x: F.gelu(x, approximate="tanh"))),
    "aten.softmax.int": (
        _anything,
        _one(lambda x: torch.softmax(x, -1), first_dimension=lambda x: torch.softmax(x, 0)),
    ),
    "aten.where.self": (_anything, _where),
    "aten.max_pool1d.default": (_signals, _max_pool(F.max_pool1d)),
    "aten.max_pool2d.default": (_images, _max_pool(F.max_pool2d)),
    "aten.max_pool3d.default": (_volumes, _max_pool(F.max_pool3d)),
    "aten.avg_pool1d.default": (_signals, _avg_pool(F.avg_pool1d)),
    "aten.avg_pool2d.default": (_images, _avg_pool_of_image),
    "aten.avg_pool3d.default": (_volumes, _avg_pool(F.avg_pool3d)),
    "aten.adaptive_avg_pool2d.default": (
        _images,
        _one(
            lambda x: F.adaptive_avg_pool2d(x, 1),
            to_two_by_two=lambda x: F.adaptive_avg_pool2d(x, 2),
            to_one_column=lambda x: F.adaptive_avg_pool2d(x, (2, 1)),
        ),
    ),
    "aten.mean.dim": (lambda sizes: [*_images(sizes), *_rows(sizes)], _mean),
    "aten.view.default": (_anything, _one(lambda x: x.view(-1), rows=lambda x: x.view(x.shape[0], -1, 1))),
    "aten.reshape.default": (
        _anything, _one(lambda x: x.reshape(-1), rows=lambda x: x.reshape(x.shape[0], -1, 1))
    ),
    "aten.flatten.using_ints": (
        _anything, _one(torch.flatten, from_the_second=lambda x: torch.flatten(x, 1))
    ),
    "aten.permute.default": (_anything, _one(lambda x: x.permute(*reversed(range(x.dim()))))),
    "aten.transpose.int": (_anything, _one(lambda x: x.transpose(0, 1), ends=lambda x: x.transpose(0, -1))),
    "aten.slice.Tensor": (
        _anything,
        _one(lambda x: x[1:], last_dimension=lambda x: x[..., 1:3], step_of_two=lambda x: x[::2]),
    ),
    "aten.squeeze.dim": (_with_a_one, _squeeze),
    "aten.unsqueeze.default": (_anything, _unsqueeze),
    "aten.dropout.default": (_anything, _one(nn.Dropout(0.5))),
    "aten.hstack.default": (_anything, _joining(torch.hstack)),
    "aten.vstack.default": (_anything, _joining(torch.vstack)),
    "aten.dstack.default": (_anything, _joining(torch.dstack)),
    "aten.column_stack.default": (_anything, _joining(torch.column_stack)),
    "aten.view_as.default": (
        _anything, _one(lambda x: x.view_as(x), reshape_as=lambda x: x.reshape_as(x.flatten()))
    ),
    "aten.unflatten.int": (
        _anything, _one(lambda x: x.unflatten(0, (1, -1)), last=lambda x: x.unflatten(-1, (-1, 1)))
    ),
    "aten.atleast_1d.default": (
        _anything, _one(torch.atleast_1d, two=torch.atleast_2d, three=torch.atleast_3d)
    ),
    "aten.swapaxes.default": (
        _anything,
        _one(
            lambda x: x.swapaxes(0, 1),
            swapdims=lambda x: x.swapdims(0, -1),
            copied=lambda x: torch.transpose_copy(x, 0, 1),
        ),
    ),
    "aten.movedim.int": (
        _anything,
        _one(
            lambda x: x.movedim(0, -1),
            two=lambda x: x.movedim((0, 1), (1, 0)),
            moveaxis=lambda x: x.moveaxis(0, 1),
        ),
    ),
    "aten.mT.default": (
        _anything, _one(lambda x: x.mT, mH=lambda x: x.mH, adjoint=torch.adjoint, T=lambda x: x.flatten(1).T)
    ),
    "aten.narrow.default": (
        _anything,
        _one(
            lambda x: x.narrow(0, 1, 1),
            counted_from_the_end=lambda x: x.narrow(-1, -2, 2),
            copied=lambda x: torch.narrow_copy(x, 0, 0, 2),
        ),
    ),
    "aten.detach.default": (
        _anything, _one(torch.detach, alias=torch.ops.aten.alias.default, copied=torch.detach_copy)
    ),
    "aten.pixel_shuffle.default": (
        _images, _pixel_shuffle
    ),
    "aten.pixel_unshuffle.default": (
        _images, _one(lambda x: F.pixel_unshuffle(x[..., :4, :4], 2))
    ),
    "aten.channel_shuffle.default": (_images, _one(lambda x: torch.channel_shuffle(x, 2))),
    "aten.flip.default": (_anything, _one(lambda x: x.flip(0))),
    "aten.roll.default": (_anything, _one(lambda x: x.roll(1, 0))),
    "aten.index_select.default": (
        _anything, _one(lambda x: torch.index_select(x, 0, torch.arange(2, device=x.device)))
    ),
    "aten.expand.default": (
        _anything,
        _one(
            lambda x: x.expand(1, *x.shape),
            as_itself=lambda x: x.expand_as(x),
            twice=lambda x: x.expand(2, *x.shape),
        ),
    ),
    "aten.repeat.default": (
        _anything,
        _one(
            lambda x: x.repeat(*[1] * x.dim()),
            twice=lambda x: x.repeat(2, *[1] * x.dim()),
            tile=lambda x: x.tile(1),
        ),
    ),
}  # fmt: skip
