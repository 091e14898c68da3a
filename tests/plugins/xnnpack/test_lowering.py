"""Rows of the support table run: each is lowered to XNNPACK, looked at, and run.

The rule for a row of the target ``executorch``: nothing of its model is left outside of the delegate, and
inside of it no kernel but the conversions of inputs and outputs reads or writes float. (A dynamic kernel
reads integers that are made when it runs, and writes float.) The program returns what the converted model
returns, up to one quantization step of the output; a dynamic one up to the order of float additions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from plugins.oracle import Model
from plugins.xnnpack.cases import Case, case_of, in_float, largest_step
from strategies import Fn, normal, sqnr
from torchquilt import SupportRow
from torchquilt.testing.configs import configs_of
from torchquilt_xnnpack import SUPPORT
from torchquilt_xnnpack.specs import GROUP_SIZES

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

# ----------------------------------------------------------------------------------------------------------
# The smallest model for each row
# ----------------------------------------------------------------------------------------------------------

ROWS = (normal(3, 8),)
SEQUENCE = (normal(2, 4, 9),)
IMAGE = (normal(2, 4, 6, 6),)
ONE_IMAGE = (IMAGE[0][:1],)
PAIR = (normal(2, 3, 4), normal(2, 3, 4, seed=1))
IMAGES = (normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1))

WIDE = (normal(3, 256),)


def product(inputs: int = 8) -> nn.Module:
    """A Conv1D of transformers: a weight that lies the other way round, and a bias."""
    return Fn(lambda m, x: torch.addmm(m.bias, x, m.weight), bias=normal(6), weight=normal(inputs, 6))


def matmul(inputs: int = 8) -> nn.Module:
    """A product with a constant."""
    return Fn(lambda m, x: x @ m.weight, weight=normal(inputs, 6))


def padded(layer: nn.Module) -> nn.Module:
    """A layer whose input is padded by more on one side."""
    return Fn(lambda m, x: m.layer(functional.pad(x, (2, 1))), layer=layer)


LINEARS: dict[str, Callable[..., nn.Module]] = {
    "linear": lambda inputs=8: nn.Linear(inputs, 6),
    "addmm": product,
    "matmul": matmul,
}
WEIGHTED: dict[str, tuple[Callable[[], nn.Module], tuple[torch.Tensor, ...]]] = {
    **{name + suffix: (make, ROWS) for name, make in LINEARS.items() for suffix in ("", "_int4")},
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), SEQUENCE),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1), IMAGE),
    "pad_conv1d": (lambda: padded(nn.Conv1d(4, 6, 3)), SEQUENCE),
    "pad_conv2d": (lambda: padded(nn.Conv2d(4, 6, 3)), IMAGE),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(4, 6, 3, 2, 1, 1), SEQUENCE),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), IMAGE),
    "conv_transpose1d_grouped": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), SEQUENCE),
    "conv_transpose2d_grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), IMAGE),
}
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "relu6": functional.relu6,
    "hardtanh": lambda x: functional.hardtanh(x, -0.5, 0.5),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
}
MOVES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "view": lambda x: x.view(2, 12, 4),
    "reshape": lambda x: x.reshape(2, 12, 4),
    "flatten": lambda x: x.flatten(1),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, 2),
    "slice": lambda x: x[:, 1:3],
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "unsqueeze": lambda x: x.unsqueeze(-1),
    "dropout": lambda x: functional.dropout(x, training=False),
    "max_pool2d": lambda x: functional.max_pool2d(x, 2),
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "contiguous": lambda x: x.transpose(1, 2).contiguous(),
    "to": lambda x: x.to(torch.float32),
    "t": lambda x: x.flatten(1).t(),
    "select": lambda x: x[:, -1],
    "pad": lambda x: functional.pad(x, (1, 0, 0, 2)),
    "view_as": lambda x: x.view_as(x.transpose(1, 2).reshape(2, 12, 4)),
    "unflatten": lambda x: x.unflatten(-1, (2, 2)),
    "atleast": lambda x: torch.atleast_3d(x.flatten(1)),
    "swapaxes": lambda x: x.swapaxes(1, 3),
    "movedim": lambda x: x.movedim((0, 1), (2, 0)),
    "matrix_transpose": lambda x: x.mT,
    "narrow": lambda x: x.narrow(-1, -3, 2),
    "detach": lambda x: x.detach().flatten(1),
    "expand": lambda x: x.expand(1, *x.shape),
    "repeat": lambda x: x.repeat(1, 1, 1, 1, 1),
    "pixel_shuffle": lambda x: functional.pixel_shuffle(x.transpose(1, 2), 2),
    "pixel_unshuffle": lambda x: functional.pixel_unshuffle(x, 2),
    "channel_shuffle": lambda x: torch.channel_shuffle(x.transpose(1, 2), 2),
}


def fused(name: str, activation: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], Model]:
    """An operator with a weight, and an activation of its output."""
    make, inputs = WEIGHTED[name]
    return lambda: Model(Fn(lambda m, x: activation(m.op(x)), op=make()), inputs)


def behind_an_add(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], Model]:
    """An operator that follows its input, behind one that is quantized."""
    return lambda: Model(Fn(lambda m, x, y: function(x + y)), IMAGES)


def of_pair(function: Callable[..., torch.Tensor]) -> Callable[[], Model]:
    """A function of two tensors."""
    return lambda: Model(Fn(lambda m, x, y: function(x, y)), PAIR)


def name_of(pattern: str, activation: str) -> str:
    """The name of the row for an operator with an activation; what its weight is stands at the end."""
    for suffix in ("_int4", "_grouped"):
        if pattern.endswith(suffix):
            return f"{pattern.removesuffix(suffix)}_{activation}{suffix}"
    return f"{pattern}_{activation}"


def dynamic(make: Callable[[], nn.Module], inputs: tuple[torch.Tensor, ...]) -> Callable[[], Model]:
    """One layer and its inputs."""
    return lambda: Model(make(), inputs)


#: (pattern, mode) → its model.
MODELS: dict[tuple[str, str], Callable[[], Model]] = {
    **{(name, "static"): fused(name, lambda x: x) for name in WEIGHTED},
    **{
        (name_of(name, act), "static"): fused(name, ACTIVATIONS[act])
        for name in WEIGHTED
        for act in ACTIVATIONS
    },
    **{(name + suffix, "dynamic"): fused(name, lambda x: x) for name in LINEARS for suffix in ("", "_int4")},
    **{
        (f"{name}_int4_group{size}", "dynamic"): dynamic(partial(make, 256), WIDE)
        for name, make in LINEARS.items()
        for size in GROUP_SIZES
    },
    ("conv2d", "dynamic"): dynamic(lambda: nn.Conv2d(4, 6, 3, 2, 1), ONE_IMAGE),
    ("conv2d_pointwise", "dynamic"): dynamic(lambda: nn.Conv2d(4, 6, 1), IMAGE),
    ("conv_transpose2d", "dynamic"): dynamic(lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), ONE_IMAGE),
    ("add", "static"): of_pair(torch.add),
    ("add_relu", "static"): of_pair(lambda x, y: (x + y).relu()),
    ("sub", "static"): of_pair(torch.sub),
    ("rsub", "static"): lambda: Model(Fn(lambda m, x: 0.5 - x), ROWS),
    ("div", "static"): lambda: Model(Fn(lambda m, x: x / 0.3), ROWS),
    ("mul", "static"): of_pair(torch.mul),
    ("mul_relu", "static"): of_pair(lambda x, y: (x * y).relu()),
    ("cat", "static"): of_pair(lambda x, y: torch.cat([x, y], 1)),
    ("stack", "static"): of_pair(lambda x, y: torch.stack([x, y], 1)),
    ("hstack", "static"): of_pair(lambda x, y: torch.hstack([x, y])),
    ("vstack", "static"): of_pair(lambda x, y: torch.vstack([x, y])),
    ("dstack", "static"): of_pair(lambda x, y: torch.dstack([x, y])),
    ("column_stack", "static"): of_pair(lambda x, y: torch.column_stack([x, y])),
    ("adaptive_avg_pool2d", "static"): lambda: Model(nn.AdaptiveAvgPool2d(1), IMAGE),
    ("relu", "static"): of_pair(lambda x, y: torch.cat([x, y], 1).relu()),  # behind an add it is fused
    **{(name, "static"): behind_an_add(f) for name, f in ACTIVATIONS.items() if name != "relu"},
    **{(name, "static"): behind_an_add(f) for name, f in MOVES.items()},
}


def granularities(row: SupportRow) -> tuple[str | None, ...]:
    """Those of a row's weight; the last of them where an activation is fused, which does not depend on it."""
    allowed = dict(row.specs).get("weight")
    if allowed is None:
        return (None,)
    found = allowed[0].granularities
    return found if len(row.pattern.operators) == 1 else found[-1:]


#: Each row, once for each granularity of its weight (``None``: it has no weight).
CLAIMS = [
    (row.pattern.name, row.mode, granularity) for row in SUPPORT.rows for granularity in granularities(row)
]
claims = pytest.mark.parametrize(
    ("pattern", "mode", "granularity"), CLAIMS, ids=["-".join(filter(None, claim)) for claim in CLAIMS]
)


@cache
def claimed(pattern: str, mode: str, granularity: str | None) -> Case:
    """The case of a claim, lowered once."""
    torch.manual_seed(0)
    (row,) = [row for row in SUPPORT.rows if (row.pattern.name, row.mode) == (pattern, mode)]
    config = next(
        config
        for config in configs_of(row)
        if granularity is None or config.weight is None or config.weight.granularity == granularity
    )
    return case_of(MODELS[pattern, mode](), config=config)


def test_every_row_has_a_model() -> None:
    """No row of the table is without a model here, so none is claimed without having run."""
    assert [row.pattern.name for row in SUPPORT.rows if (row.pattern.name, row.mode) not in MODELS] == []


def test_every_row_is_for_executorch() -> None:
    """All rows name the one target on which they are run here."""
    assert {row.targets for row in SUPPORT.rows} == {("executorch",)}


@claims
def test_row_is_what_its_model_shows(pattern: str, mode: str, granularity: str | None) -> None:
    """The model of a row is quantized by that row, so that what is lowered is what is claimed."""
    assert pattern in claimed(pattern, mode, granularity).patterns


@claims
def test_row_is_delegated(pattern: str, mode: str, granularity: str | None) -> None:
    """Nothing of the row is left outside of the delegate: neither the operator nor a q/dq node."""
    assert claimed(pattern, mode, granularity).lowered.outside == ()


@claims
def test_row_computes_with_integers(pattern: str, mode: str, granularity: str | None) -> None:
    """Inside of the delegate the row computes with integers."""
    lowered = claimed(pattern, mode, granularity).lowered

    assert [kernel for kernel in lowered.computing if in_float(kernel)] == []
    assert lowered.computing or pattern in ("dropout", "to")


@claims
def test_row_returns_what_the_converted_model_returns(
    pattern: str, mode: str, granularity: str | None
) -> None:
    """Runtime and converted model agree: within one quantization step, or 60 dB where it is dynamic.

    The scales of groups are rounded to bfloat16 by the delegate, which leaves 50 dB.
    """
    case = claimed(pattern, mode, granularity)
    ((expected, found),) = case.differences()

    if mode == "dynamic":
        assert sqnr(expected, found) > (50 if "group" in pattern else 60)
    else:
        assert (expected - found).abs().max() <= 1.001 * largest_step(case.converted)


# ----------------------------------------------------------------------------------------------------------
# Forms and combinations of what the rows claim
# ----------------------------------------------------------------------------------------------------------


def conv(inputs: int = 4, outputs: int = 4, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution for IMAGE."""
    return nn.Conv2d(inputs, outputs, kernel, **options)


def residual_block() -> nn.Module:
    """Two convolutions with a BatchNorm each in a residual, with activations in place."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(m.bn1(m.conv1(x)), inplace=True)
        y = m.bn2(m.conv2(y))
        y += x
        return functional.relu(y, inplace=True)

    parts = {
        "conv1": conv(padding=1),
        "bn1": nn.BatchNorm2d(4),
        "conv2": conv(padding=1),
        "bn2": nn.BatchNorm2d(4),
    }
    return Fn(run, **parts)


def dense_block() -> nn.Module:
    """Convolutions that read what was computed before them, joined, so that all of it has one scale."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        first = m.first(x)
        second = m.second(torch.cat([x, first], 1))
        return m.last(torch.cat([x, first, second], 1))

    parts = {"first": conv(padding=1), "second": conv(8, padding=1), "last": conv(12)}
    return Fn(run, **parts)


COMBINATIONS: dict[str, Callable[[], Model]] = {
    "same padding": lambda: Model(conv(padding="same"), IMAGE),
    "same padding, even kernel": lambda: Model(conv(kernel=4, padding="same"), IMAGE),
    "depthwise": lambda: Model(conv(outputs=8, groups=4), IMAGE),
    "grouped, strided, dilated": lambda: Model(conv(groups=2, stride=2, dilation=2, bias=False), IMAGE),
    "clamp with one bound behind a conv": lambda: Model(
        Fn(lambda m, x: m.conv(x).clamp(max=0.2), conv=conv()), IMAGE
    ),
    "conv with two users": lambda: Model(
        Fn(lambda m, x: (lambda y: y.clamp(-0.5, 0.5) + y)(m.conv(x)), conv=conv()), IMAGE
    ),
    "residual block in place": lambda: Model(residual_block(), IMAGE),
    "linear of three dimensions": lambda: Model(nn.Linear(8, 6), (normal(2, 5, 8),)),
    "linear of one dimension": lambda: Model(nn.Linear(8, 6), (normal(8),)),
    "one linear called three times": lambda: Model(
        Fn(lambda m, x: m.fc(m.fc(m.fc(x))), fc=nn.Linear(8, 8)), ROWS
    ),
    "mul by a number": lambda: Model(Fn(lambda m, x: m.fc(x) * 0.5, fc=nn.Linear(8, 8)), ROWS),
    "add of different shapes": lambda: Model(Fn(lambda m, x, y: x + y), (normal(2, 3, 4), normal(4))),
    "cat of six": lambda: Model(
        Fn(lambda m, *x: torch.cat(x, 1)), tuple(normal(2, 3, seed=i) for i in range(6))
    ),
    "slices of one tensor, added": lambda: Model(
        Fn(lambda m, x: (lambda y: y[:, :2] + y[:, 2:])(m.conv(x)), conv=conv()), IMAGE
    ),
    "slices of one tensor, joined": lambda: Model(
        Fn(lambda m, x: (lambda y: torch.cat([y[:, 3:], y[:, :3]], 1))(m.conv(x)), conv=conv()), IMAGE
    ),
    "dense block": lambda: Model(dense_block(), IMAGE),
    "flatten before the output": lambda: Model(nn.Sequential(conv(), nn.Flatten()), IMAGE),
    "max-pool in ceil mode": lambda: Model(nn.Sequential(conv(), nn.MaxPool2d(3, 2, ceil_mode=True)), IMAGE),
    "unsqueeze at the front": lambda: Model(Fn(lambda m, x, y: (x + y).unsqueeze(0)), PAIR),
    "network": lambda: Model(
        nn.Sequential(
            conv(),
            nn.ReLU6(),
            conv(groups=4, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        ),
        IMAGE,
    ),
}


@cache
def combined(name: str) -> Case:
    """A combination, lowered once."""
    torch.manual_seed(0)
    return case_of(COMBINATIONS[name]())


@pytest.mark.parametrize("name", COMBINATIONS)
def test_combination_computes_with_integers(name: str) -> None:
    """Nothing is left outside of the delegate, and inside of it nothing computes in float."""
    lowered = combined(name).lowered

    assert lowered.outside == ()
    assert [kernel for kernel in lowered.computing if in_float(kernel)] == []
    assert lowered.computing


@pytest.mark.parametrize("name", COMBINATIONS)
def test_combination_returns_what_the_converted_model_returns(name: str) -> None:
    """Runtime and converted model agree within one quantization step."""
    case = combined(name)
    ((expected, found),) = case.differences()

    assert (expected - found).abs().max() <= 1.001 * largest_step(case.converted)


LEFT_IN_FLOAT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "slice with a step": lambda x: x[:, ::2],
    "max-pool that leaves pixels out": lambda x: functional.max_pool2d(x, 1, 2),
    "average pool to more than a pixel": lambda x: functional.adaptive_avg_pool2d(x, 2),
}


@pytest.mark.parametrize("name", LEFT_IN_FLOAT)
def test_what_the_delegate_does_not_take_stays_in_float(name: str) -> None:
    """An operator outside of the delegate keeps its output in float: integers would only lose precision."""
    model = Model(Fn(lambda m, x: LEFT_IN_FLOAT[name](m.conv(x)), conv=conv()), IMAGE)
    case = case_of(model)
    (output,) = (node for node in case.converted.graph.nodes if node.op == "output")

    assert len(case.lowered.outside) == 1
    assert "dequantize" not in str(output.all_input_nodes[0].target)


def test_dynamic_linears_share_the_quantization_of_their_input() -> None:
    """Query, key and value read one input that is quantized once, per token, also with three dimensions."""
    torch.manual_seed(0)
    parts = {name: nn.Linear(8, 6) for name in ("query", "key", "value")}
    model = Model(Fn(lambda m, x: (m.query(x), m.key(x), m.value(x)), **parts), (normal(2, 5, 8),))
    case = case_of(model, is_dynamic=True)

    assert case.lowered.outside == ()
    assert case.lowered.kernels == (
        "Convert(fp32) -> qdint8",
        *["FullyConnected(qdint8, qcint8) -> fp32"] * 3,
    )
    assert all(sqnr(expected, found) > 60 for expected, found in case.differences())


def test_dynamic_rows_of_different_magnitude() -> None:
    """Each token has its own scale at run time as in the converted model, however different they are."""
    torch.manual_seed(0)
    inputs = torch.cat([normal(2, 8) * 1000, normal(2, 8, seed=1) * 0.001])
    case = case_of(Model(nn.Linear(8, 6, bias=False), (inputs,)), is_dynamic=True)
    ((expected, found),) = case.differences()

    assert sqnr(expected[:2], found[:2]) > 60
    assert sqnr(expected[2:], found[2:]) > 60


#: What changes nothing: each is dropped on the way.
COPIES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "dropout": lambda y: functional.dropout(y, training=False),
    "clone": torch.clone,
    "two clones": lambda y: y.clone().clone(),
    "cast": lambda y: y.type(torch.float32),
    "slice": lambda y: y[:],
    "detach": torch.detach,
}


@pytest.mark.parametrize("is_dynamic", [False, True])
@pytest.mark.parametrize("name", COPIES)
def test_a_tensor_and_its_copy_are_both_returned(name: str, is_dynamic: bool) -> None:
    """The delegate, which cannot return one tensor twice, computes it as integers nevertheless."""
    torch.manual_seed(0)
    model = Fn(lambda m, x: (lambda y: (y, COPIES[name](y)))(m.fc(x)), fc=nn.Linear(8, 6))
    case = case_of(Model(model, (normal(2, 5, 8),)), is_dynamic=is_dynamic)
    (kernel,) = case.lowered.computing

    assert kernel.startswith("FullyConnected(q")
    assert all(sqnr(expected, found) > 60 for expected, found in case.differences())
