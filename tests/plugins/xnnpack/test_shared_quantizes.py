"""One dynamic quantize that several operators read, as torchao writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

import torchquilt as tq
from plugins.oracle import Model, oracle_quantizer, outputs_of, quantized_by_oracle
from strategies import Fn, normal, quantize, sqnr
from torchquilt_xnnpack import XNNPACKQuantizer
from torchquilt_xnnpack.quantizes import own_quantizes

IMAGE = normal(1, 4, 8, 8)
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "first": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "second": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2),
    "strided": lambda: nn.Conv2d(4, 6, 3, stride=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 3, padding=1),
    "transposed_small": lambda: nn.ConvTranspose2d(4, 4, 1),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "small": lambda: nn.Conv2d(4, 4, 1),
    "other_small": lambda: nn.Conv2d(4, 6, 1),
    "grouped_small": lambda: nn.Conv2d(4, 4, 1, groups=2),
    "strided_small": lambda: nn.Conv2d(4, 6, 1, stride=2),
    "linear": lambda: nn.Linear(8, 8),
    "other_linear": lambda: nn.Linear(8, 8),
}

#: Convolutions that may share, whose kernels have one scale for an image as the model has.
CONVOLUTIONS: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "two": lambda m, x: m.first(x) + m.second(x),
    "three": lambda m, x: (m.first(x), m.second(x), m.strided(x)),
    "transposed": lambda m, x: m.transposed(x) + m.first(x),
    "depthwise": lambda m, x: m.depthwise(x) + m.first(x),
    "one called twice": lambda m, x: m.first(x) - m.first(m.first(x)) + m.second(x),
    "with a residual": lambda m, x: m.first(x) + m.second(x) * x,
    "joined": lambda m, x: torch.cat([m.first(x), x, m.second(x)], 1),
    "behind float": lambda m, x: (lambda y: m.first(y) + m.second(y))(x.tanh()),
    "behind one": lambda m, x: (lambda y: m.first(y) + m.second(y))(m.first(x)),
}
#: Kernels that have a scale for each pixel or row of what the model has one scale for.
FINER: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "of one pixel": lambda m, x: m.first(x) + m.small(x),
    "of one pixel, first": lambda m, x: (m.small(x) + m.first(x) - m.second(x), m.other_small(x)),
    "of one pixel, and a linear": lambda m, x: (m.small(x) + m.linear(x), m.other_small(x)),
    "of one pixel, in groups": lambda m, x: m.small(x) + m.grouped_small(x),
    "of one pixel, transposed": lambda m, x: m.small(x) + m.transposed_small(x),
    "of one pixel, strided": lambda m, x: (m.small(x), m.strided_small(x)),
    "only of one pixel": lambda m, x: (m.small(x), m.other_small(x)),
    "and a linear": lambda m, x: m.first(x) + m.linear(x),
    "and linears": lambda m, x: m.linear(x) + m.first(x) + m.other_linear(x) + m.second(x),
}


def quantized_by_torchao(call: Callable[[Any, torch.Tensor], Any]) -> tuple[nn.Module, GraphModule]:
    """A float model, and the model that torchao made of it."""
    torch.manual_seed(0)
    module = Fn(call, **{name: make() for name, make in LAYERS.items()}).eval()
    return module, quantized_by_oracle(Model(module, (IMAGE,)), oracle_quantizer(is_dynamic=True))


def _some(table: Mapping[str, object], *few: str) -> list[Any]:
    """The names in a table; all but a few take long together."""
    return [pytest.param(name, marks=() if name in few else pytest.mark.long) for name in table]


def exported(model: GraphModule) -> torch.export.ExportedProgram:
    """A converted model as a program."""
    return torch.export.export(model, (IMAGE,))


def quantizes_of(graph: torch.fx.Graph) -> int:
    """Number of dynamic quantizes."""
    return sum(".quantize_per_tensor.tensor" in f".{node.target}" for node in graph.nodes)


@pytest.mark.long
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_share_a_quantize(name: str) -> None:
    """Their kernels read the image in one order, with one scale."""
    _, converted = quantized_by_torchao(CONVOLUTIONS[name])
    program = tq.lower(converted, (IMAGE,), backends=["xnnpack"], verify=False)
    for expected, found in zip(
        outputs_of(converted, (IMAGE,)), pytree.tree_leaves(program.run(IMAGE)), strict=True
    ):
        assert sqnr(expected, found) > 75


@pytest.mark.parametrize("name", _some(FINER, "of one pixel", "and a linear"))
def test_convolutions_beside_kernels_with_finer_scales(name: str) -> None:
    """The program is as near to the float model as the quantized model, or nearer. It was −1 to 6 dB."""
    module, converted = quantized_by_torchao(FINER[name])
    program = tq.lower(converted, (IMAGE,), backends=["xnnpack"], verify=False)
    models = [outputs_of(module, (IMAGE,)), outputs_of(converted, (IMAGE,))]
    for exact, expected, found in zip(*models, pytree.tree_leaves(program.run(IMAGE)), strict=True):
        assert sqnr(exact, found) > sqnr(exact, expected) - 1


@pytest.mark.parametrize("name", ["and linears", "of one pixel, first"])
def test_each_kind_has_one_quantize(name: str) -> None:
    """Each costs a conversion, so operators of one kind share."""
    program = exported(quantized_by_torchao(FINER[name])[1])
    assert (quantizes_of(program.graph), quantizes_of(own_quantizes(program).graph)) == (1, 2)


@pytest.mark.parametrize("call", [lambda m, x: m.linear(x) + m.other_linear(x), CONVOLUTIONS["two"]])
def test_operators_of_one_kind_are_left_alone(call: Callable[[Any, torch.Tensor], Any]) -> None:
    """The program is the same one."""
    program = exported(quantized_by_torchao(call)[1])
    assert own_quantizes(program) is program


def test_what_torchquilt_converts_is_left_alone() -> None:
    """Each kind of operators has a quantize of its own there."""
    module, _ = quantized_by_torchao(FINER["of one pixel, and a linear"])
    ours = quantize(module, XNNPACKQuantizer.from_preset("dynamic_int8_per_channel"), IMAGE)
    program = exported(ours)
    assert own_quantizes(program) is program


def test_the_program_is_left_as_it_was() -> None:
    """Lowering changes a copy."""
    program = exported(quantized_by_torchao(FINER["and linears"])[1])
    before = str(program.graph)
    own_quantizes(program)
    assert str(program.graph) == before
