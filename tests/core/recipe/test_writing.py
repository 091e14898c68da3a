"""Recipes are written: quantizers become TOML, and the same again."""

from __future__ import annotations

import os
from collections.abc import Callable
from operator import neg
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import torchquilt as tq
from recipes import NARROW, STATIC, Block, read
from strategies import specs
from torchquilt.recipe import RecipePart, RecipeRule
from torchquilt.recipe.sections import with_torch, without_torch
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer, get_embedding_byte_config
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config


def test_a_recipe_is_written_for_people() -> None:
    """Presets by their names, float in words, and of a spec what a reader needs."""
    xnnpack = (
        XNNPACKQuantizer()
        .set_global(NARROW)
        .set_object_type(nn.Linear, STATIC)
        .set_object_type(Block, None)
        .set_module_name("head", None)
    )
    nested = tq.ComposableQuantizer([XNNPACKQuantizer()])
    text = tq.Recipe.of(tq.ComposableQuantizer([ExecuTorchEmbeddingQuantizer(), xnnpack, nested])).to_toml()
    activation = """\
        dtype = "int8"
        quant_min = -128
        quant_max = 127
        eps = 3.814697265625e-06
    """
    expected = f"""\
        # What is quantized, by which backend. The first quantizer to claim a node keeps it.
        schema = 1

        [[quantizer]]
        backend = "executorch_embedding"
        global = "byte_per_row"

        [[quantizer]]
        backend = "xnnpack"

        [quantizer.global.input_activation]
{activation}
        [quantizer.global.output_activation]
{activation}
        [quantizer.global.weight]
        dtype = "int8"
        quant_min = -7
        quant_max = 7
        symmetric = true
        eps = 1.52587890625e-05

        [[quantizer.type]]
        name = "torch.nn.Linear"
        config = "static_int8"

        [[quantizer.type]]
        class = "{Block.__module__}.Block"
        config = "float"

        [[quantizer.module]]
        name = "head"
        config = "float"

        [[quantizer]]

        [[quantizer.quantizer]]
        backend = "xnnpack"
    """
    assert text.split("\n") == [line.strip() for line in expected.split("\n")]


def test_a_single_quantizer_is_a_composition_of_one() -> None:
    """A single quantizer comes back as a composition, since that is what a recipe is."""
    assert tq.Recipe.of(XNNPACKQuantizer()).quantizer() == tq.ComposableQuantizer([XNNPACKQuantizer()])


def test_writing_brings_a_recipe_into_one_form() -> None:
    """A preset spelled out, a short name and a default that is relied on become what ``of`` writes."""
    loose = read("""
        [[quantizer]]
        backend = "executorch-embedding"
        [[quantizer.type]]
        name = "nn.Embedding"
        [quantizer.type.config.weight]
        dtype = "torch.uint8"
        granularity = "per_axis"
        ch_axis = 0
        zero_point_domain = "float"
    """)
    byte = get_embedding_byte_config()
    expected = tq.Recipe.of(ExecuTorchEmbeddingQuantizer().set_object_type(nn.Embedding, byte))
    assert tq.Recipe.of(loose.quantizer()) == expected != loose
    assert tq.Recipe.of(expected.quantizer()) == expected


# What a quantizer of XNNPACK can be asked for, and where.
ranges = st.tuples(st.integers(-128, -1), st.integers(1, 127))
eps = st.floats(2.0**-126, 1.0) | st.just(2.0**-23)


@st.composite
def xnnpack_configs(draw: st.DrawFn) -> tq.QuantizationConfig:
    """A config that some row of XNNPACK takes: presets, and others that are near to them."""
    if draw(st.booleans()):
        return XNNPACKQuantizer.PRESETS[draw(st.sampled_from(sorted(XNNPACKQuantizer.PRESETS)))]()
    dynamic = draw(st.booleans())
    axis = dynamic or draw(st.booleans())
    (low, high), (weight_low, weight_high) = draw(ranges), draw(ranges)
    config = get_symmetric_quantization_config(
        axis, False, dynamic, *((-128, 127) if dynamic else (low, high))
    )
    assert config.weight is not None
    weight = attrs.evolve(config.weight, quant_min=weight_low, quant_max=weight_high, eps=draw(eps))
    return attrs.evolve(config, weight=weight)


asked = st.none() | xnnpack_configs()
subjects = st.sampled_from(
    [
        *(nn.Linear, nn.Conv2d, nn.ReLU, nn.functional.relu, torch.add, torch.cat),
        *("Linear", "relu", "torch.relu", "operator.add"),
        *(torch.ops.aten.linear, torch.ops.aten.linear.default, torch.ops.aten.conv1d.padding),
        *(Block, type("<odd>.näme", (), {"__module__": "a-b"})),
    ]
)
unsupported = st.sampled_from(
    [
        *(nn.LSTM, nn.MultiheadAttention, nn.functional.gelu, torch.softmax, torch.Tensor.softmax, neg),
        *(torch.ops.aten.softmax, torch.ops.aten.sin.default, "silu", torch.special.expit),
    ]
)


@st.composite
def xnnpack_quantizers(draw: st.DrawFn) -> XNNPACKQuantizer:
    """A quantizer of XNNPACK with any rules, in any order."""
    made = XNNPACKQuantizer()
    if draw(st.booleans()):
        made.set_global(draw(asked))
    for subject in draw(st.lists(subjects, max_size=4)):
        config = draw(asked)
        try:
            made.set_object_type(subject, config)
        except tq.UnsupportedConfigError:  # for this type, which other tests show
            made.set_object_type(subject, None)
    for subject in draw(st.lists(unsupported, max_size=2)):
        made.set_object_type(subject, None)
    for name in draw(
        st.lists(st.text() | st.sampled_from(["a", "layer.1", "layer.*.x", "**.fc", "l?[0-9]"]), max_size=4)
    ):
        made.set_module_name(name, draw(asked))
    return made


@st.composite
def embedding_quantizers(draw: st.DrawFn) -> ExecuTorchEmbeddingQuantizer:
    """A quantizer of embeddings, whole or in part."""
    made = ExecuTorchEmbeddingQuantizer()
    byte = get_embedding_byte_config()
    for name in draw(st.lists(st.text(), max_size=2)):
        made.set_module_name(name, draw(st.sampled_from([None, byte])))
    return made.set_global(None) if draw(st.booleans()) else made


compositions = st.recursive(
    xnnpack_quantizers() | embedding_quantizers(),
    lambda inner: st.lists(inner, max_size=3).map(tq.ComposableQuantizer),
    max_leaves=4,
)


@given(compositions)
def test_quantizers_come_back_equal(quantizer: tq.Quantizer) -> None:
    """Quantizer → recipe → text → recipe → quantizer → recipe: equal at each step, and the text the same."""
    whole = (
        quantizer if isinstance(quantizer, tq.ComposableQuantizer) else tq.ComposableQuantizer([quantizer])
    )
    recipe = tq.Recipe.of(quantizer)
    text = recipe.to_toml()
    again = tq.Recipe.from_toml(text)
    assert again == recipe
    assert hash(again) == hash(recipe)
    assert again.to_toml() == text
    assert again.quantizer() == whole
    assert tq.Recipe.of(again.quantizer()) == recipe


@st.composite
def any_specs(draw: st.DrawFn) -> tq.QuantizationSpec:
    """Every kind of spec that may be made, whether or not a backend takes it."""
    spec = draw(specs(("per_tensor", "per_axis", "per_group")))
    spec = attrs.evolve(spec, eps=draw(eps))
    if not spec.symmetric and draw(st.booleans()):
        spec = attrs.evolve(spec, zero_point_domain="float")
    if spec.ch_axis is not None:
        return attrs.evolve(spec, ch_axis=draw(st.integers(-4, 4)))
    return spec if spec.group_size is None else attrs.evolve(spec, group_size=draw(st.integers(2, 4096)))


@given(
    st.fixed_dictionaries(
        {},
        optional={role: any_specs() for role in ("input_activation", "output_activation", "weight", "bias")},
    ).filter(bool),
    st.booleans(),
)
def test_configs_come_back_equal(roles: dict[str, Any], is_qat: bool) -> None:
    """Every field of every spec is written so that the same number is read."""
    config = tq.QuantizationConfig(**roles, is_qat=is_qat)
    spelled = without_torch(config)
    assert with_torch(spelled) == config
    recipe = tq.Recipe((RecipePart("any", (RecipeRule("global", "", spelled),)),))
    assert tq.Recipe.from_toml(recipe.to_toml()) == recipe


def test_the_distribution_is_written_where_the_name_does_not_do(install: Callable[..., None]) -> None:
    """With two backends of one name installed, the recipe says which of them it is about."""
    source = "from torchquilt_xnnpack import XNNPACKQuantizer\nclass Acme(XNNPACKQuantizer): pass"
    install("acme", source, distribution="acme-one")
    install("acme", source, distribution="acme-two")
    quantizer = tq.ComposableQuantizer([tq.quantizer("acme", distribution="acme-two")])
    recipe = tq.Recipe.of(quantizer)
    assert recipe == tq.Recipe((RecipePart("acme", (), "acme-two"),))
    assert tq.Recipe.from_toml(recipe.to_toml()).quantizer() == quantizer


def test_a_file_comes_back_equal(tmp_path: Path) -> None:
    """A saved recipe is loaded, names that are not ASCII included."""
    recipe = tq.Recipe.of(XNNPACKQuantizer().set_module_name("kopf.größe", STATIC))
    recipe.save(tmp_path / "r.toml")
    assert tq.Recipe.load(tmp_path / "r.toml") == recipe
    assert tq.Recipe.load(str(tmp_path / "r.toml")) == recipe


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk fails in the middle, the old recipe is there, whole, and nothing else."""
    path = tmp_path / "r.toml"
    tq.Recipe(()).save(path)
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(tq.RecipeError, match="no space left") as caught:
        tq.Recipe.of(XNNPACKQuantizer()).save(path)
    assert caught.value.file == str(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
