"""Whole models, lowered and run, beside what ExecuTorch's own quantizer and torchao make of them.

Each is tiny, with random weights. For both sides the same things are counted, in the same way, from the
programs: operators that delegates run as integers, and islands of float. Ours is never worse.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.nn import functional

import torchquilt as tq
from plugins.oracle import Model, oracle_quantizer, quantized_by_oracle
from strategies import Fn, export, normal, sqnr
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config


class Inverted(nn.Module):
    """The block of MobileNetV2: expand, depthwise, project, and the input again where it fits."""

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.is_residual = stride == 1 and channels == outputs
        self.layers = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block."""
        return x + self.layers(x) if self.is_residual else self.layers(x)


def mobile_net() -> Model:
    """A stem, three blocks, and a classifier."""
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
    blocks = nn.Sequential(Inverted(8, 8, 1), Inverted(8, 12, 2), Inverted(12, 12, 1))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(12, 10))
    return Model(nn.Sequential(stem, blocks, head), (normal(1, 3, 32, 32),))


class Residual(nn.Module):
    """The block of ResNet, whose one ReLU is called twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, 1, 1, bias=False) for _ in range(2))
        self.norm_1, self.norm_2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block."""
        y = self.relu(self.norm_1(self.first(x)))
        return self.relu(self.norm_2(self.second(y)) + x)


def res_net() -> Model:
    """A stem with max-pool, two blocks, and a classifier."""
    stem = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    blocks = nn.Sequential(nn.MaxPool2d(3, 2, 1), Residual(8), Residual(8))
    return Model(nn.Sequential(stem, blocks, head), (normal(1, 3, 32, 32),))


class Transformer(nn.Module):
    """A text encoder with learned positions, before whose layers nothing is masked."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 16), nn.Embedding(12, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """A score for each class."""
        places = torch.arange(tokens.shape[1])
        hidden = self.layers(self.words(tokens) + self.places(places))
        return self.head(hidden.mean(1))


def transformer() -> Model:
    """The encoder and eight tokens, twice."""
    return Model(Transformer(), (torch.arange(16).reshape(2, 8) * 7 % 50,))


class Decoder(nn.Module):
    """A layer of attention that reads and writes a cache of keys and values."""

    def __init__(self, length: int = 8) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.query, self.key, self.value, self.mix = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.down, self.out = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 50)
        self.norm = nn.LayerNorm(16)
        self.register_buffer("keys", torch.zeros(1, length, 16))
        self.register_buffer("values", torch.zeros(1, length, 16))

    def forward(self, token: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """The scores of the next token."""
        hidden = self.words(token)
        x = self.norm(hidden)
        self.keys.index_copy_(1, place, self.key(x))
        self.values.index_copy_(1, place, self.value(x))
        scores = self.query(x) @ self.keys.transpose(1, 2) / 4
        hidden_places = torch.arange(self.keys.shape[1]) > place
        scores = scores.masked_fill(hidden_places, torch.finfo(torch.float32).min)
        hidden = hidden + self.mix(scores.softmax(-1) @ self.values)
        return self.out(hidden + self.down(functional.silu(self.up(hidden))))


def decoder() -> Model:
    """The decoder and its first token."""
    return Model(Decoder(), (torch.tensor([[3]]), torch.tensor([0])))


class UNet(nn.Module):
    """One step down and up again, with what was before it joined."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.below = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.after, self.out = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A score for each pixel."""
        fine = self.before(x).relu()
        coarse = self.below(functional.max_pool2d(fine, 2)).relu()
        up = functional.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.out(self.after(torch.cat([fine, up], 1)).relu())


def u_net() -> Model:
    """The network and an image."""
    return Model(UNet(), (normal(1, 3, 16, 16),))


def lstm() -> Model:
    """A cell that is called for each of four steps, and a classifier of the last state."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        hidden, cell = torch.zeros(2, 8), torch.zeros(2, 8)
        for step in range(4):
            gates = m.of_input(x[:, step]) + m.of_state(hidden)
            into, forget, new, out = gates.chunk(4, 1)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(into) * torch.tanh(new)
            hidden = torch.sigmoid(out) * torch.tanh(cell)
        return m.head(hidden)

    parts = {"of_input": nn.Linear(6, 32), "of_state": nn.Linear(8, 32), "head": nn.Linear(8, 3)}
    return Model(Fn(run, **parts), (normal(2, 4, 6),))


MODELS: dict[str, Callable[[], Model]] = {
    made.__name__: made for made in (mobile_net, res_net, transformer, decoder, u_net, lstm)
}
#: What static quantization is not for: dynamic, on both sides.
DYNAMIC = frozenset({"transformer", "decoder"})
WITH_TABLES = frozenset({"transformer", "decoder"})


@attrs.frozen(eq=False)
class Pair:
    """A model as a program, made by us and by ExecuTorch's quantizer with torchao."""

    model: Model
    ours: tq.LoweredProgram
    theirs: tq.LoweredProgram


@cache
def pair(name: str) -> Pair:
    """Both sides, with the same numbers and calibrated with the same inputs."""
    is_dynamic = name in DYNAMIC
    torch.manual_seed(0)
    model = MODELS[name]()
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    parts = [ExecuTorchEmbeddingQuantizer()] if name in WITH_TABLES else []
    quantizer = tq.ComposableQuantizer([*parts, XNNPACKQuantizer().set_global(config)])
    prepared = tq.prepare_pt2e(
        export(model.module, *model.inputs), quantizer, activation_observer="minmax", strict=False
    )
    quantized = tq.convert_pt2e(tq.calibrate(prepared, [model.inputs]))
    ours = tq.lower(quantized, model.inputs, verify=True)
    torch.manual_seed(0)
    other = quantized_by_oracle(MODELS[name](), oracle_quantizer(is_dynamic=is_dynamic))
    theirs = tq.lower(other, model.inputs, backends=["xnnpack"])
    return Pair(model, ours, theirs)


each_model = pytest.mark.parametrize("name", MODELS)


@each_model
def test_a_model_is_composed_lowered_run_and_verified(name: str) -> None:
    """It computes on the runtime what it computes as a quantized model: 40 dB, or one step of the grid."""
    program = pair(name).ours
    assert program.verification
    assert ("executorch_embedding" in program.backends) == (name in WITH_TABLES)


@each_model
def test_what_was_quantized_runs_as_integers(name: str) -> None:
    """No operator that somebody annotated computes in float, and no conversion is left outside."""
    program = pair(name).ours
    assert program.ledger is not None
    quantized = {row.node: row.lowered for row in program.ledger if row.is_quantized}
    fallen = {
        node: fate
        for node, fate in quantized.items()
        if fate is None or fate.code in ("fell_back_to_float", "delegated_as_float")
    }
    assert quantized
    assert fallen == {}
    assert program.leftovers == ()


@each_model
def test_it_is_never_worse_than_the_other_flow(name: str, record_property: Any) -> None:
    """At least as many operators as integers, at most as many islands of float, counted alike."""
    found = pair(name)
    counts = {}
    for side, program in (("ours", found.ours), ("theirs", found.theirs)):
        counts[side] = len(program.integer_operations), len(program.float_islands)
        text = f"{counts[side][0]} delegated as integers, {counts[side][1]} islands of float"
        record_property(f"{name}, {side}", f"{text}, {program.size:,} bytes")
        print(f"{name}, {side}: {text}, {program.size:,} bytes")  # noqa: T201  (shown by -rP)
    assert counts["ours"][0] >= counts["theirs"][0]
    assert counts["ours"][1] <= counts["theirs"][1]


@each_model
def test_the_other_program_runs_too(name: str) -> None:
    """What is compared is a program that works: it computes about what the float model does."""
    found = pair(name)
    expected = found.model.module.eval()(*found.model.inputs)
    assert sqnr(expected, found.theirs.run(*found.model.inputs)) > 10


def test_a_decoder_goes_on_with_its_cache() -> None:
    """Token by token the program returns what the quantized model does, each with a state of its own."""
    model, program = pair("decoder").model, pair("decoder").ours
    fresh = Decoder()
    fresh.load_state_dict(model.module.state_dict())
    fresh.keys.zero_()
    fresh.values.zero_()
    for place, token in enumerate([3, 1, 4, 1, 5]):
        inputs = (torch.tensor([[token]]), torch.tensor([place]))
        with torch.no_grad():
            expected = fresh(*inputs)
        assert sqnr(expected, program.run(*inputs)) > 20
