"""Our quantizers in torchao's flow, beside our own flow with min-max observers."""

from __future__ import annotations

import random

import pytest
from torchao.quantization.pt2e import quantizer as theirs

import torchquilt as tq
from plugins.oracle import are_bit_equal, describe
from plugins.torchao.flows import by_torchao, by_torchquilt
from plugins.torchao.models import MODELS, model_of
from torchquilt_torchao import as_torchao, foreign

pytestmark = pytest.mark.filterwarnings("ignore:Something was asked for in this model")

PRESETS = sorted(
    f"{backend.name}:{preset}"
    for backend in tq.backends()
    if backend.manifest is not None and backend.distribution.startswith("torchquilt-")
    for preset in backend.manifest.preset_names
)
#: Our convert also writes biases as steps that a kernel of 4-bit weights can add; torchao's has no such pass.
ROUNDS_BIASES = {"xnnpack:static_int8_weight_int4"}
PAIRS = [(preset, name) for preset in PRESETS if preset not in ROUNDS_BIASES for name in MODELS]
SAMPLE = random.Random(0).sample(PAIRS, 30)


def check(preset: str, name: str) -> None:
    """One preset and one model."""
    ours = by_torchquilt(model_of(name), preset)
    found = by_torchao(model_of(name), as_torchao(preset, strict=False))
    assert describe(found) == describe(ours)
    assert are_bit_equal(found, ours, model_of(name).inputs)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("preset", "name"), PAIRS)
def test_every_preset_gives_in_torchaos_flow_what_it_gives_in_ours(preset: str, name: str) -> None:
    """Quantize and dequantize nodes and parameters are the same, outputs are bit-equal."""
    check(preset, name)


@pytest.mark.long
@pytest.mark.parametrize(("preset", "name"), SAMPLE)
def test_a_sample_of_presets_in_torchaos_flow(preset: str, name: str) -> None:
    """The same for a seeded sample."""
    check(preset, name)


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("xnnpack:static_int8_per_channel", "residual"),
        ("xnnpack:dynamic_int8_per_channel", "perceptron"),
        ("executorch_embedding:int4_group32", "linear"),
        ("executorch_embedding:byte_per_row", "text"),
    ],
)
def test_a_few_presets_in_torchaos_flow(preset: str, name: str) -> None:
    """The same for four that take no time: static, per token, nothing to quantize, a float zero point."""
    check(preset, name)


def test_a_composition_in_torchaos_flow() -> None:
    """A composition is one quantizer of torchao."""

    def composed() -> tq.ComposableQuantizer:
        return tq.ComposableQuantizer(
            ["executorch_embedding:byte_per_row", "xnnpack:dynamic_int8_per_channel"]
        )

    ours = by_torchquilt(model_of("text"), composed())
    found = by_torchao(model_of("text"), as_torchao(composed()))
    assert describe(found) == describe(ours)


def test_as_torchao_composes_in_torchao_if_it_is_first() -> None:
    """In torchao's composition it decides first; after another one that took its operators it is an error."""
    ours = as_torchao("xnnpack:static_int8_per_channel")
    other = as_torchao("xnnpack:static_int8")
    assert by_torchao(model_of("conv"), theirs.ComposableQuantizer([ours])) is not None
    with pytest.raises(tq.CompositionError, match="comes before"):
        by_torchao(model_of("conv"), theirs.ComposableQuantizer([other, ours]))


def test_foreign_of_as_torchao_is_what_it_was() -> None:
    """There and back again."""
    quantizer = tq.quantizer("xnnpack", "static_int8")
    assert foreign(as_torchao(quantizer)) is quantizer
