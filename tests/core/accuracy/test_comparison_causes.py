"""Models whose accuracy is lost in a known way: a comparison names where and why."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

import torchquilt as tq
from small_models import SMALL_MODELS
from strategies import Fn, export, normal
from torchquilt.accuracy.comparison_values import ComparedOperator
from torchquilt.graph.edits import copy_model
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

# ----------------------------------------------------------------------------------------------------------
# A planted wrong scale
# ----------------------------------------------------------------------------------------------------------

#: Model → how many of its quantized tensors get a wrong scale, one at a time: 20 in all.
PLANTED = {"mobile_net": 7, "res_net": 7, "transformer": 6}


def per_channel(**asked: bool) -> XNNPACKQuantizer:
    """XNNPACK everywhere, int8 per channel."""
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, **asked))


@pytest.fixture(scope="module", params=PLANTED)
def quantized(
    request: pytest.FixtureRequest,
) -> tuple[ExportedProgram, GraphModule, list[tuple[torch.Tensor, ...]], int]:
    """A small model, its quantized form, what it was calibrated with, and how many scales to plant."""
    (small,) = (one for one in SMALL_MODELS if one.name == request.param)
    batches = [small.batch(seed) for seed in range(2)]
    exported = export(small.module(), *batches[0])
    prepared = tq.prepare_pt2e(exported, per_channel())
    found = tq.convert_pt2e(tq.calibrate(prepared, batches))
    return exported, found, batches, PLANTED[request.param]


def quantizes(model: GraphModule) -> list[Node]:
    """The nodes that quantize an activation."""
    return [
        node for node in model.graph.nodes if "quantized_decomposed.quantize_per_tensor" in str(node.target)
    ]


def plant(model: GraphModule, number: int, factor: float) -> tuple[GraphModule, Node]:
    """A copy in which a tensor is quantized with another scale, and the node that quantizes it."""
    model = copy_model(model)
    quantize = quantizes(model)[number]
    for node in (quantize, *quantize.users):
        node.update_arg(1, node.args[1] * factor)
    model.recompile()
    return model, quantize


def owners(model: GraphModule, quantize: Node) -> tuple[set[str], str]:
    """The operators that a wrong scale belongs to, and the name of the tensor there."""
    source = quantize.all_input_nodes[0]
    rows = {row.node: row for row in tq.ledger_of(model)}
    for row in rows.values():
        if source.name in dict(row.written_as[:-1]):  # it is written in several operators
            return {row.node}, f"within {source.name}"
    row = rows.get(source.name)
    if row is not None and any(tensor.edge == "output" for tensor in row.tensors):
        return {source.name}, "output"
    readers = {user.name for read in quantize.users for user in read.users}
    while source.name not in rows and source.op == "call_function":  # the dequantize of what was made before
        source = source.all_input_nodes[0]
    return readers, f"input {source.name}"


def test_a_planted_wrong_scale_is_found_first(
    quantized: tuple[ExportedProgram, GraphModule, list[tuple[torch.Tensor, ...]], int],
) -> None:
    """Whichever tensor it is, and whether the range is 16 times too large or too small."""
    exported, found, batches, count = quantized
    drawn = random.Random(7)
    chosen = drawn.sample(range(len(quantizes(found))), count)
    missed = []
    for number in chosen:
        planted, quantize = plant(found, number, drawn.choice([16.0, 1 / 16]))
        expected, tensor = owners(planted, quantize)
        worst = tq.compare(exported, planted, batches, progress=False).worst
        assert worst is not None
        if worst.node not in expected or tensor not in {one.name for one in worst.tensors}:
            missed.append((quantize.name, expected, str(worst)))
    assert missed == []


# ----------------------------------------------------------------------------------------------------------
# One channel, heavy tails, a small class token
# ----------------------------------------------------------------------------------------------------------


def compared(model: nn.Module, batches: list[tuple[torch.Tensor, ...]], **asked: bool) -> tq.Comparison:
    """The comparison of a model that is quantized on the very batches."""
    exported = export(model, *batches[0])
    prepared = tq.prepare_pt2e(exported, per_channel(**asked), activation_observer="minmax")
    return tq.compare(exported, tq.convert_pt2e(tq.calibrate(prepared, batches)), batches, progress=False)


def worst_of(comparison: tq.Comparison) -> ComparedOperator:
    """The first row."""
    assert comparison.worst is not None
    return comparison.worst


def test_channels_that_become_zero_beside_one_that_is_scaled_by_a_thousand_are_named() -> None:
    """Its tensor has a good signal to noise as a whole, and what reads it channel by channel has none."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        first.weight[5] *= 1000
    norm = nn.InstanceNorm2d(8)
    comparison = compared(nn.Sequential(first, norm), [(normal(2, 3, 8, 8, seed=seed),) for seed in range(2)])
    row = comparison["conv2d"]
    assert row.zeroed_channels == 7
    assert "7 whole channels: a step is" in row.reason
    assert "stretch the range" in row.reason
    assert comparison.outputs[0].error.sqnr < 10


def test_weights_of_one_channel_that_are_scaled_to_a_thousandth_are_named() -> None:
    """They become zero beside the others, and no activation is to blame."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        model[0].weight[5] *= 1000
        model[1].weight[:, 5] /= 1000
    found = worst_of(compared(model, [(normal(2, 3, 8, 8, seed=seed),) for seed in range(2)]))
    assert (found.node, found.reason) == ("conv2d_1", "its weights are rounded")


class Cell(nn.Module):
    """One step of a recurrent cell."""

    def __init__(self, bins: int = 16, width: int = 12) -> None:
        super().__init__()
        self.of_input, self.of_state = nn.Linear(bins, 4 * width), nn.Linear(width, 4 * width)

    def forward(
        self, frame: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A frame (batch, bins) and the state (batch, width) to the next state."""
        gates = self.of_input(frame) + self.of_state(hidden)
        into, forget, new, out = gates.chunk(4, 1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(into) * torch.tanh(new)
        return torch.sigmoid(out) * torch.tanh(cell), cell


def test_heavy_tails_at_a_recurrent_cell_are_named() -> None:
    """A hundred steps over exponentials of normal numbers: few values take all of the range."""
    torch.manual_seed(0)
    model, state, batches = Cell(), (torch.zeros(4, 12), torch.zeros(4, 12)), []
    for frame in (2 * normal(100, 4, 16)).exp():
        batches.append((frame, *state))
        with torch.no_grad():
            state = model(frame, *state)
    comparison = compared(model, batches)
    found = worst_of(comparison)
    assert found.node == "linear"
    assert "becomes zero" in found.reason
    assert "stretch the range" in found.reason


def test_a_class_token_that_is_small_beside_its_patches_is_named() -> None:
    """Values of 0.02 beside ones of 1 are some steps of a scale that fits the ones, or none."""
    torch.manual_seed(0)
    token = nn.Parameter(torch.randn(1, 1, 16) * 0.02)

    def run(m: Fn, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([m.token.expand(x.shape[0], -1, -1), m.patches(x).flatten(2).transpose(1, 2)], 1)
        return m.head(nn.functional.layer_norm(both[:, :1], (16,)))

    model = Fn(run, token=token, patches=nn.Conv2d(3, 16, 4, 4), head=nn.Linear(16, 5))
    comparison = compared(model, [(3 * normal(2, 3, 16, 16, seed=seed),) for seed in range(2)])
    found = worst_of(comparison)
    assert "steps of" in found.reason or "becomes zero" in found.reason
