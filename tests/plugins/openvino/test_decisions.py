"""Decisions of OpenVINO's table about a transformer's products and sums, and about those of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import torchquilt as tq
from plugins.openvino.models import Calling, images, program, statuses
from torchquilt.testing.operators import uniform

SIZE, HEADS = 16, 2


class Block(nn.Module):
    """A block of a transformer; its LayerNorms are in front of attention and layers, or behind the sums."""

    def __init__(self, *, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.of_attention, self.of_layers = nn.LayerNorm(SIZE), nn.LayerNorm(SIZE)
        self.query, self.key, self.value, self.out = (nn.Linear(SIZE, SIZE) for _ in range(4))
        self.up, self.down = nn.Linear(SIZE, 2 * SIZE), nn.Linear(2 * SIZE, SIZE)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """Attention with heads."""
        heads = (
            one(x).view(*x.shape[:2], HEADS, -1).transpose(1, 2) for one in (self.query, self.key, self.value)
        )
        found = functional.scaled_dot_product_attention(*heads)
        read: torch.Tensor = self.out(found.transpose(1, 2).reshape(x.shape))
        return read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend, and compute with each token."""
        if self.norm_first:
            x = x + self.attend(self.of_attention(x))
            return x + self.down(functional.gelu(self.up(self.of_layers(x))))
        x = self.of_attention(x + self.attend(x))
        found: torch.Tensor = self.of_layers(x + self.down(functional.gelu(self.up(x))))
        return found


def transformer(*, norm_first: bool) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Two blocks with a linear behind them, and its inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = [Block(norm_first=norm_first) for _ in range(2)]
        return nn.Sequential(*blocks, nn.Linear(SIZE, 4)).eval(), (uniform(2, 5, SIZE),)


def ledger_of(model: nn.Module, inputs: tuple[Any, ...]) -> tq.Ledger:
    """The decisions about a model."""
    exported = torch.export.export(model.eval(), inputs)
    return tq.explain(exported, tq.quantizer("openvino", preset="static_int8_per_channel"))


def with_integer_outputs(ledger: tq.Ledger) -> set[str]:
    """The operators whose outputs have quantization parameters."""
    return {row.node for row in ledger if any(tensor.edge == "output" for tensor in row.tensors)}


@pytest.mark.parametrize("norm_first", [False, True], ids=["norm last", "norm first"])
def test_a_transformer_adds_and_attends_in_float(norm_first: bool) -> None:
    """Linears read integers, and the last one alone returns them: to who calls the program."""
    ledger = ledger_of(*transformer(norm_first=norm_first))
    assert [row.op for row in ledger.quantized] == ["aten.linear.default"] * 13
    assert with_integer_outputs(ledger) == {"linear_12"}
    codes = {row.op: row.code for row in ledger}
    assert codes["aten.add.Tensor"] == "not_profitable"
    assert codes["aten.view.default"] == "no_quantized_neighbour"


def test_images_are_added_as_integers() -> None:
    """Convolutions return integers, and sums between them read and return them."""
    ledger = ledger_of(*images())
    assert {row.node for row in ledger if not row.is_quantized} == set()
    assert with_integer_outputs(ledger) == {"relu", "conv2d_1", "relu_1", "max_pool2d", "mean", "linear"}


PRODUCTS: dict[str, Callable[..., torch.Tensor]] = {
    "linear": lambda layer, x: layer(x),
    "linear, relu": lambda layer, x: layer(x).relu(),
    "matmul": lambda layer, x: x @ layer.weight.t(),
    "addmm": lambda layer, x: torch.addmm(layer.bias, x, layer.weight.t()),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_each_product_returns_floats_to_float_operators(name: str) -> None:
    """However it is written; once it is written as a linear, too."""
    product = PRODUCTS[name]
    model = Calling(lambda layer, x: torch.tanh(product(layer, x)), nn.Linear(8, 8))
    ledger = ledger_of(model, (uniform(4, 8),))
    assert any(row.is_quantized for row in ledger)
    assert with_integer_outputs(ledger) == set()


@pytest.mark.parametrize("name", PRODUCTS)
def test_each_product_returns_integers_to_those_who_read_them(name: str) -> None:
    """However it is written."""
    product = PRODUCTS[name]
    model = Calling(lambda layer, x: layer(product(layer, x)), nn.Linear(8, 8))
    assert len(with_integer_outputs(ledger_of(model, (uniform(4, 8),)))) == 2


@pytest.mark.long
@pytest.mark.parametrize("norm_first", [False, True], ids=["norm last", "norm first"])
def test_a_transformer_multiplies_integers(norm_first: bool) -> None:
    """The kernel of each linear reads them, and the program computes what was converted."""
    lowered = program(*transformer(norm_first=norm_first))
    found = statuses(lowered)
    linears = {name for name in found if name.startswith("linear")}
    assert len(linears) == 13
    assert {found[name] for name in linears} == {"integer_kernel"}
    assert found["add"] == "float_kernel"


AVERAGES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "plain": (lambda x: functional.avg_pool2d(x, 2), ""),
    "padding that is not counted": (lambda x: functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False), ""),
    "padding that is counted": (lambda x: functional.avg_pool2d(x, 3, 1, 1), "constraint:counted_padding"),
    "padding of one dimension": (
        lambda x: functional.avg_pool2d(x, 3, 1, (0, 1)),
        "constraint:counted_padding",
    ),
    "ceil mode": (lambda x: functional.avg_pool2d(x, 2, ceil_mode=True), "constraint:ceil_mode"),
    "another divisor": (lambda x: functional.avg_pool2d(x, 2, divisor_override=3), "constraint:divisor"),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_of_images(name: str) -> None:
    """OpenVINO averages integers that it need not pad, and no window hangs over the end."""
    pool, code = AVERAGES[name]
    model = Calling(lambda conv, x: conv(pool(conv(x))), nn.Conv2d(3, 3, 1))
    row = ledger_of(model, (uniform(1, 3, 7, 7),))["avg_pool2d"]
    assert (row.is_quantized, row.code) == (not code, code)


@pytest.mark.long
@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("activation", [None, torch.relu], ids=["any zero point", "zero point 0"])
def test_averages_are_right(name: str, activation: Callable[..., torch.Tensor] | None) -> None:
    """The program computes what was converted, also at the edges."""
    pool, _ = AVERAGES[name]
    act = activation or (lambda x: x)
    # The first values are around 3, so that 0 is no integer in their middle.
    model = Calling(lambda conv, x: conv(pool(act(conv(x) + 3))), nn.Conv2d(3, 3, 1))
    lowered = program(model, (uniform(1, 3, 7, 7),))
    found = statuses(lowered)
    assert (found["conv2d"], found["conv2d_1"]) == ("integer_kernel", "integer_kernel")


@pytest.mark.long
def test_a_change_of_strides_keeps_no_average_in_float() -> None:
    """Torch writes one behind the mean of an image in ``channels_last``."""
    x = uniform(1, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    model = Calling(lambda conv, x: conv(functional.adaptive_avg_pool2d(x, 1)), nn.Conv2d(4, 4, 1))
    assert set(statuses(program(model, (x,))).values()) == {"integer_kernel"}
