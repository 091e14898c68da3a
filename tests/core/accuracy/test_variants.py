"""Variants: other decisions about some modules are, bit by bit, what prepare, calibrate and convert make."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

import torchquilt as tq
from small_models import SMALL_MODELS
from strategies import Fn, export, normal, outputs_of
from torchquilt.accuracy.units import FLOAT, Choice
from torchquilt.accuracy.variants import Variants
from torchquilt.observers import MinMaxObserver
from torchquilt.pt2e.observer_points import observed_points
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

SUBJECTS = {subject.name: subject for subject in SMALL_MODELS}
STATIC = get_symmetric_quantization_config(is_per_channel=True)
DYNAMIC = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)


def static() -> XNNPACKQuantizer:
    """Everything static, per channel."""
    return XNNPACKQuantizer().set_global(STATIC)


def by_hand(
    exported: ExportedProgram, quantizer: object, batches: list[Any], observer: str = "histogram"
) -> GraphModule:
    """The steps of a user."""
    prepared = tq.prepare_pt2e(exported, quantizer, activation_observer=observer, strict=False)
    return tq.convert_pt2e(tq.calibrate(prepared, batches, progress=False), unseen="float")


def same_model(one: GraphModule, other: GraphModule) -> bool:
    """Equal operators, and equal tensors to the last bit."""
    mine, theirs = one.state_dict(), other.state_dict()
    return (
        one.code == other.code
        and list(mine) == list(theirs)
        and all(
            torch.equal(mine[name], theirs[name]) for name in mine if isinstance(mine[name], torch.Tensor)
        )
    )


def calibration_bytes(calibration: tq.Calibration) -> bytes:
    """All that a calibration holds, as bytes."""
    stream = io.BytesIO()
    torch.save(calibration, stream)
    return stream.getvalue()


def calibration_of(
    exported: ExportedProgram, quantizer: object, batches: list[Any], path: Path
) -> tq.Calibration:
    """A calibration apart from the model."""
    tq.calibrate(tq.prepare_pt2e(exported, quantizer), batches, checkpoint=path, progress=False)
    return tq.merge_calibration([path])


def some_choices(variants: Variants, seed: int) -> dict[str, Choice]:
    """Random choices about some of the modules that may be decided about."""
    draw = random.Random(seed)
    searchable = variants.composition.searchable()
    found: dict[str, Choice] = {}
    for choice in (FLOAT, *variants.composition.choices()):
        for unit in searchable[choice.leaf or 0]:
            if draw.random() < 0.25:
                found[unit] = choice
    return found


class Block(nn.Module):
    """Two linears, a residual, and a product with a weight of the block's own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.weight = nn.Parameter(torch.empty(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block."""
        return self.other((self.fc(x) + x).relu()) + nn.functional.linear(x, self.weight)


class Stored(nn.Module):
    """Branches of control flow with modules and constants of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One branch or the other, and the first layer again."""
        y = self.a(x)

        def one(y: torch.Tensor) -> torch.Tensor:
            return self.b(y) * torch.tensor(2.0) + 1

        def other(y: torch.Tensor) -> torch.Tensor:
            return self.c(y) * torch.tensor(5.0)

        return self.a(torch.cond(y.sum() > 0, one, other, (y,)))


def with_weights(model: nn.Module) -> nn.Module:
    """The model with random weights, for each shape the same."""
    for parameter in model.parameters():
        parameter.data = normal(*parameter.shape, seed=parameter.numel()) / 3
    return model


def check(
    exported: ExportedProgram,
    quantizer: object,
    batches: list[Any],
    seeds: range = range(4),
    observer: str = "histogram",
) -> None:
    """Variants of several random choices are what a user gets."""
    variants = Variants(exported, quantizer, batches, observer)
    for choices in ({}, *(some_choices(variants, seed) for seed in seeds)):
        made = variants.converted(variants.prepared(variants.decided(choices)))
        wanted = by_hand(exported, variants.composition.with_choices(choices), batches, observer)
        assert same_model(made, wanted), choices


BATCHES = [normal(4, 8, seed=seed) * (seed + 1) for seed in range(3)]


def _joined(module: Any, x: torch.Tensor) -> torch.Tensor:
    return module.b(torch.cat([module.a(x).relu(), module.a(x).relu(), module.c(x)], 1))


def _linears(**sizes: tuple[int, int]) -> dict[str, nn.Module]:
    return {name: nn.Linear(*size) for name, size in sizes.items()}


MODELS: dict[str, Callable[[], nn.Module]] = {
    "blocks": lambda: nn.Sequential(Block(), Block()),
    "the same twice in a join": lambda: Fn(_joined, **_linears(a=(8, 8), b=(24, 8), c=(8, 8))),
    "called three times": lambda: Fn(
        lambda m, x: m.a(m.b(m.a(x).tanh())) + m.a(x), **_linears(a=(8, 8), b=(8, 8))
    ),
    "in place": lambda: Fn(lambda m, x: m.b(m.a(x).relu_().add_(1)), **_linears(a=(8, 8), b=(8, 8))),
    "control flow": Stored,
}
QUANTIZERS: dict[str, Callable[[], object]] = {
    "static": static,
    "by operator": lambda: static().set_operator_type(torch.ops.aten.add.Tensor, None),
    "by class": lambda: static().set_module_type(nn.Linear, DYNAMIC),
    "by filter": lambda: static().set_filter_function(lambda node: "linear" in str(node.target)),
    "nested": lambda: tq.ComposableQuantizer(
        [
            tq.ComposableQuantizer([ExecuTorchEmbeddingQuantizer()]),
            tq.ComposableQuantizer([XNNPACKQuantizer().set_module_type(nn.Linear, DYNAMIC), static()]),
        ]
    ),
    "a user's own first": lambda: tq.ComposableQuantizer([outputs_of("add", "relu", name="mine"), static()]),
    "a user's own": lambda: outputs_of("linear", "relu"),
}


#: Each model and each quantizer once; the other pairs take long.
_PAIRS = [
    pytest.param(
        model, quantizer, marks=() if quantizer == "static" or model == "blocks" else pytest.mark.long
    )
    for model in MODELS
    for quantizer in QUANTIZERS
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model", "quantizer"), _PAIRS)
def test_a_variant_is_what_prepare_calibrate_and_convert_make(model: str, quantizer: str) -> None:
    """For random choices, whatever the user's quantizer is made of."""
    check(export(with_weights(MODELS[model]()), BATCHES[0]), QUANTIZERS[quantizer](), BATCHES, range(1))


class Counting(MinMaxObserver):
    """Counts how often any of them is shown something."""

    shown = 0

    def update(self, tensor: torch.Tensor) -> None:
        """Count, and look."""
        Counting.shown += 1
        super().update(tensor)


@pytest.mark.filterwarnings("ignore")
def test_each_tensor_is_observed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is decided after everything was: nothing more is looked at, and nothing is exported."""
    Counting.shown = 0
    exported = export(with_weights(MODELS["blocks"]()), BATCHES[0])
    monkeypatch.setattr(torch.export, "export", None)
    quantizer = static()
    variants = Variants(exported, quantizer, iter(BATCHES), Counting)
    variants.prepared(variants.decided({}))
    first = Counting.shown
    assert first == len(BATCHES) * len(observed_points(tq.prepare_pt2e(exported, quantizer)))
    seen = [first]
    for seed in (0, 1, 2, 0, 1, 2):
        variants.prepared(variants.decided(some_choices(variants, seed)))
        seen.append(Counting.shown)
    assert seen[3:] == [seen[3]] * 4


@pytest.mark.filterwarnings("ignore")
def test_what_the_user_has_stays_as_it_was(tmp_path: Path) -> None:
    """Model, quantizer and calibration, a cache that the model writes to among them."""
    subject = SUBJECTS["decoder"]
    exported = torch.export.export(subject.module(), subject.batch(0))
    before = {name: value.clone() for name, value in exported.state_dict.items()}
    quantizer = static().set_module_name("mix", None)
    asked, code = quantizer.intent, exported.graph_module.code
    calibration = calibration_of(exported, quantizer, [subject.batch(0)], tmp_path / "state")
    digest = calibration_bytes(calibration)
    check(exported, quantizer, [subject.batch(seed) for seed in range(3)], range(2))
    Variants(exported, quantizer, calibration, "histogram")
    assert (quantizer.intent, exported.graph_module.code) == (asked, code)
    assert all(torch.equal(value, before[name]) for name, value in exported.state_dict.items())
    assert calibration_bytes(calibration) == digest


@pytest.mark.filterwarnings("ignore")
def test_a_calibration_stands_for_its_batches(tmp_path: Path) -> None:
    """For the decisions that it was made with, and for those that ask for no other tensor."""
    exported = export(with_weights(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))), BATCHES[0])
    calibration = calibration_of(exported, static(), BATCHES, tmp_path / "state")
    variants = Variants(exported, static(), calibration, "histogram")
    for choices in ({}, {"2": FLOAT}, {"0": FLOAT}):
        made = variants.converted(variants.prepared(variants.decided(choices)))
        assert same_model(made, by_hand(exported, variants.composition.with_choices(choices), BATCHES))


@pytest.mark.filterwarnings("ignore")
def test_a_calibration_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    """It says what is missing and what to pass, instead of a range of nothing."""
    exported = export(with_weights(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))), BATCHES[0])
    partly = static().set_module_name("0", None)
    calibration = calibration_of(exported, partly, BATCHES, tmp_path / "state")
    variants = Variants(exported, partly, calibration, "histogram")
    choices = {"0": Choice("static", 0, STATIC)}
    with pytest.raises(tq.AccuracyError, match="pass the batches"):
        variants.prepared(variants.decided(choices))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_dynamic", [False, True])
@pytest.mark.parametrize("name", SUBJECTS)
def test_so_it_is_for_whole_models(name: str, is_dynamic: bool) -> None:
    """BatchNorm in modules of its own, attention, a cache, joins, cells that are called many times."""
    subject = SUBJECTS[name]
    exported = torch.export.export(subject.module(), subject.batch(0))
    composed = tq.ComposableQuantizer(
        [ExecuTorchEmbeddingQuantizer(), XNNPACKQuantizer().set_global(DYNAMIC if is_dynamic else STATIC)]
    )
    check(exported, composed, [subject.batch(seed) for seed in range(3)], range(6))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("observer", ["minmax", "percentile:99", "entropy"])
def test_so_it_is_for_all_observers(observer: str) -> None:
    """Statistics of tensors that were observed apart are merged as if they had been observed together."""
    model = MODELS["the same twice in a join"]()
    check(export(with_weights(model), BATCHES[0]), static(), BATCHES, range(3), observer)


@pytest.mark.filterwarnings("ignore")
def test_so_it_is_for_more_data_than_a_histogram_keeps() -> None:
    """Its bins are merged, too."""
    heavy = [normal(400, 8, seed=seed) * normal(400, 8, seed=seed + 99).exp() for seed in range(40)]
    model = MODELS["the same twice in a join"]()
    check(export(with_weights(model), heavy[0]), static(), heavy, range(2))


def test_a_moving_average_cannot_be_merged() -> None:
    """Two inputs of a join have one range, and the order in which they came is not known any more."""
    model = Fn(lambda m, x: m.b(torch.cat([m.a(x), m.c(x)], 1)), **_linears(a=(8, 8), b=(16, 8), c=(8, 8)))
    variants = Variants(export(model, BATCHES[0]), static(), BATCHES, "moving_average")
    with pytest.raises(tq.AccuracyError, match="order of the data"):
        variants.prepared(variants.decided({}))
