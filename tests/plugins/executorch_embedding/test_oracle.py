"""Byte embeddings beside those of torchao: the same edges and parameters, the integers rounded once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantizer.composable_quantizer import (
    ComposableQuantizer as OracleComposableQuantizer,
)
from torchao.quantization.pt2e.quantizer.embedding_quantizer import EmbeddingQuantizer as OracleQuantizer

import torchquilt as tq
from plugins.oracle import (
    Model,
    describe,
    oracle_quantizer,
    our_config,
    our_quantizer,
    outline,
    outputs_of,
    per_token,
    quantized_by_oracle,
    quantized_by_us,
    steps_of,
)
from strategies import Fn
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer

IDS = torch.tensor([[0, 8, 3, 3], [5, 1, 7, 2]])


def embedding(**options: Any) -> nn.Embedding:
    """Nine rows of six."""
    return nn.Embedding(9, 6, **options)


class Tied(nn.Module):
    """An embedding whose table is also the weight of the output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = embedding()
        self.hidden = nn.Linear(6, 6)
        self.out = nn.Linear(6, 9, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embed, transform, project back."""
        return self.out(self.hidden(self.embed(ids)).relu())


MODELS = {
    "embedding": embedding,
    "two tables": lambda: Fn(
        lambda m, ids: m.word(ids) + m.position(ids % 4), word=embedding(), position=embedding()
    ),
    "one table read twice": lambda: Fn(lambda m, ids: m.table(ids) - m.table(ids % 4), table=embedding()),
    "functional": lambda: Fn(lambda m, ids: nn.functional.embedding(ids, m.table), table=embedding().weight),
    "table that is also added": lambda: Fn(
        lambda m, ids: m.table(ids) + m.table.weight[0], table=embedding()
    ),
    "table of constants": lambda: Fn(lambda m, ids: m.table(torch.arange(4)) + ids[0, 0], table=embedding()),
}


class Encoder(nn.Module):
    """Words and positions, LayerNorm, and two linears in a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.position = embedding(), embedding()
        self.norm = nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embed, normalise, transform, add."""
        hidden = self.norm(self.word(ids) + self.position(torch.arange(4)))
        return self.down(self.up(hidden).relu()) + hidden


COMPOSED = {
    "encoder": Encoder,
    "classifier": lambda: nn.Sequential(embedding(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)),
    "tied": Tied,
}


def both(module: nn.Module, **composed: bool) -> tuple[Model, GraphModule, GraphModule]:
    """A model, and what the oracle and we make of it; with XNNPACK behind the embeddings if asked for."""
    model = Model(module, (IDS,))
    theirs, ours = OracleQuantizer(), ExecuTorchEmbeddingQuantizer()
    if composed:
        theirs = OracleComposableQuantizer([theirs, oracle_quantizer(**composed)])
        linears = our_quantizer(**composed)
        if not composed.get("is_dynamic"):
            # By its name, since between embeddings and a LayerNorm it is not profitable.
            linears.set_object_type(torch.add, our_config(**composed))
        ours = tq.ComposableQuantizer([ours, linears])
    return model, quantized_by_oracle(model, theirs), quantized_by_us(model, ours)


def without_tables(converted: GraphModule) -> list[str]:
    """The description of a converted model without the lines that hold the integers of a table."""
    return [line for line in describe(converted) if not line.startswith("aten.embedding")]


def table_of(model: GraphModule) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Integers, scale and zero point of the only byte table of a converted model."""
    (integers,) = (tensor for tensor in model.state_dict().values() if tensor.dtype == torch.uint8)
    (step,) = (
        node
        for node in model.graph.nodes
        if "dequantize_per_channel" in str(node.target) and torch.uint8 in node.args
    )
    scale, zero_point = (model.get_buffer(argument.target) for argument in step.args[1:3])
    return integers.int(), scale, zero_point


@pytest.mark.parametrize("name", MODELS)
def test_tables_have_the_places_and_parameters_of_the_oracle(name: str) -> None:
    """The same tables are quantized, per row, with the same scales and zero points."""
    torch.manual_seed(0)
    _, theirs, ours = both(MODELS[name]())

    assert outline(ours) == outline(theirs)
    assert steps_of(ours) == steps_of(theirs)


@pytest.mark.parametrize("name", COMPOSED)
def test_dynamic_composition_with_xnnpack_is_that_of_the_oracle(name: str) -> None:
    """Composed with dynamic linears the tables are as by themselves, and the linears per token."""
    torch.manual_seed(0)
    _, theirs, ours = both(COMPOSED[name](), is_dynamic=True)

    assert outline(ours) == outline(theirs)
    assert without_tables(ours) == [per_token(line) for line in without_tables(theirs)]


@pytest.mark.parametrize("is_per_channel", [False, True], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("name", COMPOSED)
def test_composition_with_xnnpack_is_that_of_the_oracle(name: str, is_per_channel: bool) -> None:
    """Composed with XNNPACK's quantizer all but the integers of the table is as torchao composes it."""
    torch.manual_seed(0)
    _, theirs, ours = both(COMPOSED[name](), is_per_channel=is_per_channel)

    assert outline(ours) == outline(theirs)
    assert steps_of(ours) == steps_of(theirs)
    assert without_tables(ours) == without_tables(theirs)


def test_int32_indices_are_widened() -> None:
    """A difference that is meant: the kernel for byte tables reads int64 indices, so it is given these."""
    torch.manual_seed(0)
    _, theirs, ours = both(Fn(lambda m, ids: m.table(ids.int()), table=embedding()))
    before, after = ["_assert_tensor_metadata(-)", "to(-)"], ["embedding(q, -)", "output(-)"]

    assert outline(theirs) == [*before, *after]
    assert outline(ours) == [*before, "to(-)", *after]
    (indices,) = (node.args[1] for node in ours.graph.nodes if "aten.embedding" in str(node.target))
    assert indices.meta["val"].dtype is torch.int64


def test_integers_are_rounded_once() -> None:
    """A difference that is meant: the integers are those nearest to the table, one off torchao's at most.

    Its operator rounds before it adds the float zero point and then cuts off what is left, which is off by up
    to one and a half steps. Both are dequantized alike.
    """
    torch.manual_seed(0)
    model, theirs, ours = both(embedding())
    integers, scale, zero_point = table_of(ours)
    nearest = (model.module.weight / scale[:, None] + zero_point[:, None]).round().clamp(0, 255)
    distance = (table_of(theirs)[0] - integers).abs()

    assert torch.equal(integers.float(), nearest)
    assert distance.max() == 1


def test_integers_are_nearer_than_those_of_the_oracle() -> None:
    """The reason for rounding once: our largest error is half a step, that of the oracle is more than one."""
    torch.manual_seed(0)
    model, theirs, ours = both(embedding())
    (expected,) = outputs_of(model.module, model.inputs)
    steps = table_of(ours)[1][IDS][:, :, None]

    def error(converted: GraphModule) -> float:
        return float(((outputs_of(converted, model.inputs)[0] - expected).abs() / steps).max())

    assert error(ours) < 0.501
    assert error(theirs) > 1


def test_rows_of_a_narrow_range_are_kept() -> None:
    """A difference that is meant: a row whose values lie close together keeps them.

    torchao takes a scale of 1.0 for a range of less than 255 · 2⁻¹², which makes one number of the row.
    """
    torch.manual_seed(0)
    module = embedding()
    with torch.no_grad():
        module.weight[3] = 1 + module.weight[3] * 1e-3
    model, theirs, ours = both(module)
    expected = outputs_of(model.module, model.inputs)[0][0, 2]

    assert table_of(theirs)[1][3] == 1.0
    assert (outputs_of(theirs, model.inputs)[0][0, 2] - expected).abs().max() > 1e-3
    assert (outputs_of(ours, model.inputs)[0][0, 2] - expected).abs().max() < 1e-5


def test_padding_row_is_zero_on_both_sides() -> None:
    """The row of padding_idx, all zero, is the narrowest of all: zero comes out of it, whatever its scale."""
    torch.manual_seed(0)
    model, theirs, ours = both(embedding(padding_idx=0))

    for converted in (theirs, ours):
        assert not outputs_of(converted, model.inputs)[0][0, 0].any()
        assert outputs_of(converted, model.inputs)[0][0, 1].any()
