"""Recipes: the intent of a composition as TOML, read, written, and refused with the line that is wrong."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from operator import neg
from pathlib import Path
from textwrap import dedent
from typing import Any

import attrs
import pytest
import tomlkit
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import torchquilt as tq
from strategies import Nothing, specs
from torchquilt import recipe as recipe_module
from torchquilt.plugins import registry
from torchquilt.recipe import RecipePart, RecipeRule
from torchquilt.recipe.parts import with_torch, without_torch
from torchquilt.recipe.place import lines_of
from torchquilt.spec import NamedDtype
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer, get_embedding_byte_config
from torchquilt_xnnpack import SUPPORT, XNNPACKQuantizer, get_symmetric_quantization_config

STATIC = get_symmetric_quantization_config()
DYNAMIC = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
NARROW = get_symmetric_quantization_config(weight_qmin=-7, weight_qmax=7)


class Block(nn.Module):
    """A class of the user's own."""


def read(text: str) -> tq.Recipe:
    """A recipe from indented text; the schema is put before it, on the line of the opening quotes."""
    return tq.Recipe.from_toml("schema = 1" + dedent(text), file="r.toml")


def only(recipe: tq.Recipe) -> XNNPACKQuantizer:
    """The one quantizer, of XNNPACK, that a recipe makes."""
    (made,) = recipe.quantizer().quantizers
    assert isinstance(made, XNNPACKQuantizer)
    return made


def in_fresh_python(code: str) -> list[str]:
    """What code prints in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Puts a backend on the path whose class is the one of this source."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    loaded = set(sys.modules)

    def put(name: str, source: str, *presets: str, distribution: str = "acme-quilt") -> None:
        module = distribution.replace("-", "_")
        info = folder / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[torchquilt]\n{name} = {module}\n")
        (folder / f"{module}_code.py").write_text(dedent(source))
        (folder / f"{module}.py").write_text(
            "from torchquilt.plugins import Manifest, PresetInfo, hookimpl\n"
            "@hookimpl\n"
            "def torchquilt_manifest():\n"
            f"    presets = tuple(PresetInfo(name, 'a preset') for name in {presets!r})\n"
            f"    return Manifest(name={name!r}, api=1, summary='for tests', presets=presets,\n"
            f"                    quantizer='{module}_code:Acme')\n"
        )

    yield put
    for module in set(sys.modules) - loaded:
        if module.startswith("acme"):
            del sys.modules[module]


# ----------------------------------------------------------------------------------------------------------
# Reading
# ----------------------------------------------------------------------------------------------------------


def test_the_example_of_the_documentation_makes_its_quantizers() -> None:
    """What the docstring of the module shows is a recipe, and all of it can be asked for."""
    lines = (recipe_module.__doc__ or "").partition("::\n")[2].splitlines()
    example = dedent("\n".join(line for line in lines if line.startswith("    ") or not line))
    embedding, xnnpack = tq.Recipe.from_toml(example).quantizer().quantizers
    weight = tq.QuantizationSpec("int8", -7, 7, "per_axis", ch_axis=0, symmetric=True)
    tokens = tq.QuantizationSpec("int8", granularity="per_token", is_dynamic=True)
    stand_in = type("Block", (), {"__module__": "my_model.layers"})
    assert embedding == ExecuTorchEmbeddingQuantizer()
    assert xnnpack == (
        XNNPACKQuantizer()
        .set_global(DYNAMIC)
        .set_object_type(nn.Linear, tq.QuantizationConfig(input_activation=tokens, weight=weight))
        .set_object_type(stand_in, None)
        .set_module_name("head", None)
    )


def test_a_recipe_is_plain_data() -> None:
    """What is read is a value of texts and numbers, with the fields that were left out filled in."""
    found = read("""
        [[quantizer]]
        backend = "anything"
        global.weight = { dtype = "int8", symmetric = true, zero_point = 0, eps = 1 }
        [[quantizer.module]]
        name = "head"
        config = "float"
    """)
    int8: Any = NamedDtype("int8")
    weight = tq.QuantizationSpec(int8, -128, 127, symmetric=True, eps=1.0)
    everywhere = RecipeRule("global", "", tq.QuantizationConfig(weight=weight))
    assert found == tq.Recipe((RecipePart("anything", (everywhere, RecipeRule("module", "head", None))),))
    assert hash(found) == hash(tq.Recipe(found.quantizers))


@pytest.mark.parametrize(
    "text",
    [
        'schema = 1\n[[quantizer]]\nglobal = "static_int8"  # a comment\nbackend = "xnnpack"\n',
        'quantizer = [{ backend = "xnnpack", global = "static_int8" }]\nschema = 1',
        'schema = 1\r\n[[quantizer]]\r\nbackend = "xnnpack"\r\nglobal = "static_int8"\r\n',
        'schema = 1\n[[quantizer]]\nbackend = \'xnnpack\'\n\'global\' = """\nstatic_int8"""\n',
        'schema = 1\n[[quantizer]]\nbackend = "xnnpack"\nglobal = "static_int8"\ntype = []\nmodule = []\n',
    ],
)
def test_how_it_is_written_makes_no_difference(text: str) -> None:
    """Recipes are equal if they say the same in other words of TOML."""
    assert tq.Recipe.from_toml(text) == tq.Recipe.of(XNNPACKQuantizer().set_global(STATIC))


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """What some editors of Windows write is read."""
    path = tmp_path / "r.toml"
    path.write_bytes(b"\xef\xbb\xbfschema = 1\r\nquantizer = []\r\n")
    assert tq.Recipe.load(path) == tq.Recipe(())


def test_what_a_backend_asks_for_by_itself_stays() -> None:
    """Without a global rule of the recipe the one of the backend holds."""
    found = read("""
        [[quantizer]]
        backend = "executorch-embedding"
        [[quantizer.module]]
        name = "positions"
        config = "float"
    """)
    expected = ExecuTorchEmbeddingQuantizer().set_module_name("positions", None)
    assert found.quantizer() == tq.ComposableQuantizer([expected])


def test_no_global_rule_is_not_the_same_as_float() -> None:
    """Asking for float everywhere is a rule; a ledger shows it as one."""
    silent, said = (
        read('\n[[quantizer]]\nbackend = "xnnpack"'),
        read('\n[[quantizer]]\nbackend = "xnnpack"\nglobal = "float"'),
    )
    assert silent != said
    assert only(silent) == XNNPACKQuantizer()
    assert only(said) == XNNPACKQuantizer().set_global(None)


def test_compositions_nest() -> None:
    """An entry with quantizers below it is a composition; one without any does nothing."""
    found = read("""
        [[quantizer]]
        [[quantizer.quantizer]]
        backend = "xnnpack"
        [[quantizer.quantizer.module]]
        name = "a"
        config = "static_int8"
        [[quantizer.quantizer]]
        quantizer = []
        [[quantizer]]
        backend = "executorch_embedding"
    """)
    assert found.quantizer() == tq.ComposableQuantizer(
        [
            tq.ComposableQuantizer(
                [XNNPACKQuantizer().set_module_name("a", STATIC), tq.ComposableQuantizer([])]
            ),
            ExecuTorchEmbeddingQuantizer(),
        ]
    )


def test_rules_keep_their_order() -> None:
    """Of two rules about types, either may come first; the quantizer has them as they were written."""
    names = ["torch.nn.ReLU", "torch.nn.Linear", "torch.add"]
    rules = [f'\n[[quantizer.type]]\nname = "{name}"\nconfig = "static_int8"' for name in names]
    made = only(read('\n[[quantizer]]\nbackend = "xnnpack"' + "".join(rules)))
    expected = XNNPACKQuantizer()
    for subject in (nn.ReLU, nn.Linear, torch.add):
        expected.set_object_type(subject, STATIC)
    assert made.intent.type_rules == expected.intent.type_rules


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("torch.nn.Linear", nn.Linear),
        ("torch.nn.modules.linear.Linear", nn.Linear),
        ("nn.Linear", nn.Linear),
        ("torch.nn.LSTM", nn.LSTM),
        ("torch.nn.functional.linear", nn.functional.linear),
        ("torch.add", torch.add),
        ("aten.linear", torch.ops.aten.linear),
        ("aten.linear.default", torch.ops.aten.linear.default),
        ("torch.ops.aten.linear.default", torch.ops.aten.linear.default),
        ("torch.ops.aten.softmax", torch.ops.aten.softmax),
        ("aten.softmax", torch.ops.aten.softmax),
        ("torch.nn.functional.gelu", nn.functional.gelu),
        ("torch.softmax", torch.softmax),
        ("torch.Tensor.softmax", torch.Tensor.softmax),
        ("operator.neg", neg),
        ("gelu", "gelu"),
        ("nn.GELU", nn.GELU),
        ("aten.sin.default", torch.ops.aten.sin.default),
    ],
)
def test_types_of_torch_go_by_their_names(name: str, subject: object) -> None:
    """A name in the file means what the object means in Python, also where no operator table knows it."""
    made = only(
        read(f'\n[[quantizer]]\nbackend = "xnnpack"\n[[quantizer.type]]\nname = "{name}"\nconfig = "float"')
    )
    assert made == XNNPACKQuantizer().set_object_type(subject, None)


def test_loading_imports_neither_torch_nor_a_plugin(tmp_path: Path) -> None:
    """A recipe, with a config spelled out, is read and compared where neither is installed."""
    path = tmp_path / "r.toml"
    tq.Recipe.of(XNNPACKQuantizer().set_global(NARROW)).save(path)
    assert in_fresh_python(f"""
        import sys
        import torchquilt as tq
        recipe = tq.Recipe.load({str(path)!r})
        assert recipe == tq.Recipe.from_toml(recipe.to_toml()), repr(recipe)
        print("torch" in sys.modules, *(name for name in sys.modules if name.startswith("torchquilt_")))
    """) == ["False"]


def test_making_quantizers_imports_only_the_plugins_that_are_named(tmp_path: Path) -> None:
    """The module of another plugin is not even looked at, and a user's class is not imported."""
    path = tmp_path / "r.toml"
    tq.Recipe.of(XNNPACKQuantizer().set_object_type(Block, None)).save(path)
    packages = in_fresh_python(f"""
        import sys
        import torchquilt as tq
        tq.Recipe.load({str(path)!r}).quantizer()
        print(*{{name.partition(".")[0] for name in sys.modules}})
    """)
    assert "torchquilt_xnnpack" in packages
    assert "torchquilt_executorch_embedding" not in packages
    assert Block.__module__ not in packages


def test_the_distribution_may_be_named() -> None:
    """Where several packages have a backend of one name, the recipe says which is meant."""
    text = '\n[[quantizer]]\nbackend = "xnnpack"\ndistribution = "{}"'
    assert only(read(text.format("torchquilt-xnnpack"))) == XNNPACKQuantizer()
    with pytest.raises(tq.RecipeError) as caught:
        read(text.format("acme-quilt")).quantizer()
    assert (caught.value.line, caught.value.key) == (3, "quantizer[0].backend")
    assert "torchquilt-xnnpack" in str(caught.value.expected)


PRESETS_ONLY = """
    class Acme:
        def __init__(self, preset=None):
            self.preset = preset
        @classmethod
        def from_preset(cls, name):
            return cls(name)
        def annotate(self, model):
            return model
"""


def test_a_backend_without_rules_takes_a_preset(install: Callable[..., None]) -> None:
    """A backend whose class is no table with an intent can be made from a preset, or as it is."""
    install("acme", PRESETS_ONLY, "small")
    text = '\n[[quantizer]]\nbackend = "acme"'
    (plain,) = read(text).quantizer().quantizers
    (small,) = read(text + '\nglobal = "small"').quantizer().quantizers
    assert (plain.subject.preset, small.subject.preset) == (None, "small")  # type: ignore[attr-defined]


# ----------------------------------------------------------------------------------------------------------
# Writing
# ----------------------------------------------------------------------------------------------------------


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
        eps = 0.000244140625
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
        eps = 0.000244140625

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
    """What comes back is a composition, since that is what a recipe is."""
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
    """What is saved is loaded, names that are not ASCII included."""
    recipe = tq.Recipe.of(XNNPACKQuantizer().set_module_name("kopf.größe", STATIC))
    recipe.save(tmp_path / "r.toml")
    assert tq.Recipe.load(tmp_path / "r.toml") == recipe
    assert tq.Recipe.load(str(tmp_path / "r.toml")) == recipe


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk fails in the middle, the recipe from before is there, whole, and nothing else."""
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


# ----------------------------------------------------------------------------------------------------------
# What cannot be written
# ----------------------------------------------------------------------------------------------------------


class Own(tq.Quantizer):
    """A quantizer that no plugin provides."""


class Derived(XNNPACKQuantizer):
    """A class of the user's own that derives from that of a plugin."""


class Composition(tq.ComposableQuantizer):
    """A composition that may do something else."""


class Duck:
    """An object that has what a quantizer needs."""

    def annotate(self, model: Any) -> Any:
        """Leave all in float."""
        return model


@pytest.mark.parametrize(
    ("quantizer", "name"),
    [
        (Own(), "Own"),
        (Derived(), "Derived"),
        (Duck(), "Duck"),
        (Composition([]), "Composition"),
        (Nothing(), "Nothing"),
        (tq.PatternQuantizer(SUPPORT), "PatternQuantizer"),
    ],
)
def test_a_quantizer_of_no_backend_cannot_be_written(quantizer: object, name: str) -> None:
    """The error names the quantizer, and where in the composition it is."""
    nested = tq.ComposableQuantizer([XNNPACKQuantizer(), tq.ComposableQuantizer([quantizer])])
    with pytest.raises(tq.RecipeError, match="no pattern quantizer of an installed backend") as caught:
        tq.Recipe.of(nested)
    assert caught.value.quantizer == name
    assert caught.value.key == "quantizer[1].quantizer[0]"
    assert str(caught.value.problem).startswith(f"{name} cannot be written")
    assert "xnnpack" in str(caught.value.expected)


def test_a_filter_function_cannot_be_written() -> None:
    """It is code; leaving it out in silence would quantize more than was asked for."""
    quantizer = XNNPACKQuantizer().set_global(STATIC).set_filter_function(lambda node: True)
    with pytest.raises(tq.RecipeError, match="has more to it than rules") as caught:
        tq.Recipe.of(quantizer)
    assert (caught.value.quantizer, caught.value.key) == ("xnnpack", "quantizer[0]")
    assert "set_filter_function" in str(caught.value.remedy)


def test_a_table_of_its_own_cannot_be_written() -> None:
    """A quantizer that was given another table than that of its backend is not what a recipe would make."""
    table = attrs.evolve(SUPPORT, rows=SUPPORT.rows[:3])
    with pytest.raises(tq.RecipeError, match="has more to it than rules"):
        tq.Recipe.of(XNNPACKQuantizer(table))


def test_what_reading_would_add_cannot_be_written() -> None:
    """A quantizer without the rule that its backend begins with would come back with it."""
    quantizer = ExecuTorchEmbeddingQuantizer()
    quantizer.intent = attrs.evolve(quantizer.intent, global_rule=None)
    with pytest.raises(tq.RecipeError, match="has more to it than rules"):
        tq.Recipe.of(quantizer)


def test_a_type_that_no_name_leads_to_cannot_be_written() -> None:
    """An operator whose overloads are not those that its name stands for is refused, and named."""
    quantizer = XNNPACKQuantizer()
    kind = attrs.evolve(
        quantizer.set_object_type("relu", None).intent.type_rules[0].type, overloads=("aten.sin.default",)
    )
    quantizer.intent = quantizer.intent.with_type(kind, None)
    with pytest.raises(tq.RecipeError, match="has more to it than rules") as caught:
        tq.Recipe.of(quantizer)
    assert caught.value.key == "quantizer[0]"


def test_a_backend_that_does_not_say_what_was_asked_cannot_be_written(install: Callable[..., None]) -> None:
    """A plugin's class that is no table with an intent can be used from a recipe, not written to one."""
    install("acme", PRESETS_ONLY, "small")
    with pytest.raises(tq.RecipeError, match="no pattern quantizer of an installed backend"):
        tq.Recipe.of(tq.quantizer("acme", "small"))


def test_what_is_no_quantizer_is_refused_as_everywhere() -> None:
    """``of`` takes what a composition takes."""
    with pytest.raises(tq.IntentError, match="not a quantizer"):
        tq.Recipe.of("xnnpack")


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A folder that is not there is an error of ours, with the path."""
    with pytest.raises(tq.RecipeError, match="FileNotFoundError") as caught:
        tq.Recipe(()).save(tmp_path / "missing/r.toml")
    assert caught.value.file == str(tmp_path / "missing/r.toml")


def test_a_name_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    """Half of a surrogate pair cannot be put into a file, and nothing is written."""
    recipe = tq.Recipe.of(XNNPACKQuantizer().set_module_name("\ud800", None))
    with pytest.raises(tq.RecipeError, match="UnicodeEncodeError"):
        recipe.save(tmp_path / "r.toml")
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------------------
# What cannot be read
# ----------------------------------------------------------------------------------------------------------


@attrs.frozen
class Wrong:
    """A text with a mistake: where it is found, and what the error has to say."""

    text: str
    line: int
    key: str | None
    says: tuple[str, ...]


_X = '[[quantizer]]\nbackend = "xnnpack"\n'
_W = _X + "[quantizer.global.weight]\n"
_HEAD = 'schema = 1\n# a comment\nquantizer = [{ backend = "xnnpack", '

WRONG_IN_ITSELF = {
    "no schema": Wrong("quantizer = []", 0, None, ("schema = 1", "no schema")),
    "newer schema": Wrong(
        "schema = 2\nnew = 1", 1, "schema", ("schema = 2", "pip install --upgrade torchquilt")
    ),
    "older schema": Wrong("schema = 0", 1, "schema", ("write schema = 1",)),
    "schema is a text": Wrong('schema = "1"', 1, "schema", ('got: schema = "1"',)),
    "schema is a bool": Wrong("schema = true", 1, "schema", ("got: schema = true",)),
    "no quantizers": Wrong("schema = 1", 0, "quantizer", ("is missing", "only schema")),
    "one bracket": Wrong("schema = 1\n[quantizer]", 2, "quantizer", ("double brackets",)),
    "not tables": Wrong("schema = 1\nquantizer = [\n1]", 3, "quantizer[0]", ("a table", "got: 1")),
    "unknown key": Wrong("schema = 1\n[[quantiser]]", 2, "quantiser", ("did you mean quantizer?",)),
    "unknown key of a part": Wrong(
        f"schema = 1\n{_X}\nbackends = 1", 5, "quantizer[0].backends", ("did you mean backend?",)
    ),
    "neither backend nor quantizers": Wrong(
        "schema = 1\n[[quantizer]]\nglobal = 'float'", 2, "quantizer[0].backend", ("is missing",)
    ),
    "backend and quantizers": Wrong(
        f"schema = 1\n{_X}quantizer = []", 3, "quantizer[0].backend", ("no key",)
    ),
    "rules of a composition": Wrong(
        "schema = 1\n[[quantizer]]\nquantizer = []\nglobal = 'float'",
        4,
        "quantizer[0].global",
        ("quantizer",),
    ),
    "backend is no text": Wrong(
        "schema = 1\n[[quantizer]]\nbackend = 1", 3, "quantizer[0].backend", ("a text in quotes", "got: 1")
    ),
    "distribution is no text": Wrong(
        f"schema = 1\n{_X}distribution = []", 4, "quantizer[0].distribution", ()
    ),
    "config is a number": Wrong(
        f"schema = 1\n{_X}global = 8", 4, "quantizer[0].global", ("a text in quotes or a table", "got: 8")
    ),
    "config is a date": Wrong(
        f"schema = 1\n{_X}global = 2020-01-01", 4, "quantizer[0].global", ("got: 2020-01-01",)
    ),
    "config of nothing": Wrong(
        f"schema = 1\n{_X}global = {{}}", 4, "quantizer[0].global", ("quantizes nothing", "at least one role")
    ),
    "unknown role": Wrong(
        f"schema = 1\n{_X}[quantizer.global.weights]", 4, "quantizer[0].global.weights", ("mean weight?",)
    ),
    "is_qat is no bool": Wrong(
        f"schema = 1\n{_X}global.is_qat = 1", 4, "quantizer[0].global.is_qat", ("true",)
    ),
    "dynamic weight": Wrong(
        f'schema = 1\n{_W}dtype = "int8"\nis_dynamic = true',
        4,
        "quantizer[0].global.weight",
        ("weight=None",),
    ),
    "no dtype": Wrong(
        f"schema = 1\n{_W}symmetric = true",
        4,
        "quantizer[0].global.weight.dtype",
        ("dtype", "only symmetric"),
    ),
    "unknown dtype": Wrong(
        f'schema = 1\n{_W}dtype = "int9"',
        5,
        "quantizer[0].global.weight.dtype",
        ("torch.int9", "torch.int8 |"),
    ),
    "unknown granularity": Wrong(
        f'schema = 1\n{_W}dtype = "int8"\ngranularity = "per_chanel"',
        6,
        "quantizer[0].global.weight.granularity",
        ("per_chanel", "| per_axis"),
    ),
    "unknown field": Wrong(
        f'schema = 1\n{_W}dtype = "int8"\nquantmin = 1',
        6,
        "quantizer[0].global.weight.quantmin",
        ("did you mean quant_min",),
    ),
    "number in quotes": Wrong(
        f'schema = 1\n{_W}dtype = "int8"\n\nquant_min = "-127"',
        7,
        "quantizer[0].global.weight.quant_min",
        ("whole numbers", "got: quant_min='-127'"),
    ),
    "fraction for a whole number": Wrong(
        f'schema = 1\n{_W}dtype = "int8"\nquant_min = -127.0', 6, "quantizer[0].global.weight.quant_min", ()
    ),
    "out of the range": Wrong(
        f'schema = 1\n{_W}dtype = "int8"\nquant_max = 128',
        6,
        "quantizer[0].global.weight.quant_max",
        ("quant_max <= 127", "wider dtype"),
    ),
    "fields that contradict each other": Wrong(
        f'schema = 1\n{_W}dtype = "int8"\ngranularity = "per_axis"',
        4,
        "quantizer[0].global.weight",
        ("needs a ch_axis",),
    ),
    "a bad field in an inline table": Wrong(
        _HEAD + 'global = {\nweight = { dtype = "int8", ch_axis = 0 } } }]'.replace("\n", " "),
        3,
        "quantizer[0].global.weight.ch_axis",
        ("does not take",),
    ),
    "eps is nothing": Wrong(
        f'schema = 1\n{_W}dtype = "int8"\neps = nan', 6, "quantizer[0].global.weight.eps", ("0 < eps",)
    ),
    "type without a name": Wrong(
        f"schema = 1\n{_X}[[quantizer.type]]\nconfig = 'float'",
        4,
        "quantizer[0].type[0].name",
        ("is missing",),
    ),
    "type as a key": Wrong(
        f"schema = 1\n{_X}[[quantizer.type]]\ntype = 'x'",
        5,
        "quantizer[0].type[0].type",
        ("name | config",),
    ),
    "type without a config": Wrong(
        f"schema = 1\n{_X}[[quantizer.type]]\nname = 'relu'",
        4,
        "quantizer[0].type[0].config",
        ("is missing", "only name"),
    ),
    "module without a name": Wrong(
        f"schema = 1\n{_X}[[quantizer.module]]\nconfig = 'float'", 4, "quantizer[0].module[0].name", ()
    ),
    "bool in quotes": Wrong(
        f'schema = 1\n{_W}dtype = "int8"\nsymmetric = "false"',
        6,
        "quantizer[0].global.weight.symmetric",
        ("true or false", 'got: "false"'),
    ),
    "an array over several lines": Wrong(
        'schema = 1\nquantizer = [\n  { backend = "a" },  # ]\n  { backend = 1 },\n]',
        4,
        "quantizer[1].backend",
        ("a text in quotes",),
    ),
    "in a nested composition": Wrong(
        "schema = 1\n[[quantizer]]\n"
        "[[quantizer.quantizer]]\nbackend = 'a'\n[[quantizer.quantizer]]\nbackend = 1",
        6,
        "quantizer[0].quantizer[1].backend",
        (),
    ),
    "no TOML": Wrong("schema = 1\nquantizer = [\n}", 3, None, ("not valid TOML",)),
    "no TOML up to the end": Wrong("schema = 1\nquantizer = [\n\n", 2, None, ("not valid TOML",)),
    "a key twice": Wrong("schema = 1\nschema = 1", 2, None, ("not valid TOML", "overwrite")),
    "more digits than Python reads": Wrong("schema = " + "9" * 5000, 0, None, ("not valid TOML",)),
    "deeper than Python goes": Wrong("schema = " + "[" * 100_000, 0, None, ("not valid TOML",)),
}


@pytest.mark.parametrize("wrong", WRONG_IN_ITSELF.values(), ids=WRONG_IN_ITSELF.keys())
def test_a_mistake_is_found_when_it_is_loaded(wrong: Wrong, tmp_path: Path) -> None:
    """What is wrong whatever is installed is refused at once, with file, line, key and what would do."""
    path = tmp_path / "r.toml"
    path.write_text(wrong.text)
    with pytest.raises(tq.RecipeError) as caught:
        tq.Recipe.load(path)
    assert (caught.value.file, caught.value.line, caught.value.key) == (
        str(path),
        wrong.line or None,
        wrong.key,
    )
    for part in wrong.says:
        assert part in str(caught.value)


_T = _X + "[[quantizer.type]]\n"

WRONG_HERE = {
    "unknown backend": Wrong(
        "[[quantizer]]\nbackend = 'xnnpak'", 3, "quantizer[0].backend", ("mean 'xnnpack'?",)
    ),
    "unknown preset": Wrong(
        f"{_X}global = 'static_int'", 4, "quantizer[0].global", ("no preset", "static_int8 |")
    ),
    "preset of a rule": Wrong(
        f"{_T}name = 'relu'\nconfig = 'floot'", 6, "quantizer[0].type[0].config", ("no preset", "| float")
    ),
    "unknown type": Wrong(
        f"{_T}name = 'torch.nn.Liner'\nconfig = 'float'",
        5,
        "quantizer[0].type[0].name",
        ("mean torch.nn.Linear",),
    ),
    "module of torch": Wrong(f"{_T}name = 'torch.nn'\nconfig = 'float'", 5, "quantizer[0].type[0].name", ()),
    "one type under two names": Wrong(
        f"{_T}name = 'nn.Linear'\nconfig = 'float'\n[[quantizer.type]]\nname = 'Linear'\nconfig = 'float'",
        7,
        "quantizer[0].type[1]",
        ("two rules",),
    ),
    "one module twice": Wrong(
        _X + "[[quantizer.module]]\nname = 'a'\nconfig = 'float'\n" * 2,
        7,
        "quantizer[0].module[1]",
        ("two rules", "'a'"),
    ),
    "type without a row": Wrong(
        f"{_T}name = 'torch.nn.Embedding'\nconfig = 'static_int8'",
        6,
        "quantizer[0].type[0].config",
        ("no row for", "XNNPACKQuantizer"),
    ),
    "config that is not for the type": Wrong(
        f"{_T}name = 'torch.nn.Conv1d'\nconfig = 'dynamic_int8'",
        6,
        "quantizer[0].type[0].config",
        ("no row for torch.nn.modules.conv.Conv1d", "nearest is", "static_int8_per_channel"),
    ),
    "function that is not one operator": Wrong(
        f"{_T}name = 'torch.nn.functional.interpolate'\nconfig = 'float'",
        5,
        "quantizer[0].type[0].name",
        ("not one operator", "name the operators"),
    ),
    "unsupported config": Wrong(
        f"{_X}[[quantizer.module]]\nname = 'a'\n[quantizer.module.config.weight]\ndtype = 'uint8'",
        6,
        "quantizer[0].module[0].config",
        ("nearest is", "presets that it takes"),
    ),
    "in a nested composition": Wrong(
        f"[[quantizer]]\n[[quantizer.quantizer]]\nbackend = 'xnnpack'\n{_X}global = 'b'",
        7,
        "quantizer[1].global",
        (),
    ),
}


@pytest.mark.parametrize("wrong", WRONG_HERE.values(), ids=WRONG_HERE.keys())
def test_what_the_backends_do_not_know_is_found_when_they_are_made(wrong: Wrong, tmp_path: Path) -> None:
    """What depends on what is installed is refused with file, line and key as well, and the cause is kept."""
    path = tmp_path / "r.toml"
    path.write_text(f"schema = 1\n{wrong.text}")
    recipe = tq.Recipe.load(path)
    with pytest.raises(tq.RecipeError) as caught:
        recipe.quantizer()
    assert (caught.value.file, caught.value.line, caught.value.key) == (str(path), wrong.line, wrong.key)
    assert "two rules" in wrong.says or isinstance(caught.value.__cause__, tq.TorchquiltError)
    for part in wrong.says:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "rule", ["global = 'float'", "global.weight.dtype = 'int8'", "module = [{name = 'a', config = 'small'}]"]
)
def test_a_backend_without_rules_refuses_them(rule: str, install: Callable[..., None]) -> None:
    """A rule that it could not follow is refused and not ignored."""
    install("acme", PRESETS_ONLY, "small")
    recipe = read(f"\n[[quantizer]]\nbackend = 'acme'\n{rule}")
    with pytest.raises(tq.RecipeError, match="takes no rules, only presets") as caught:
        recipe.quantizer()
    assert (caught.value.line, caught.value.quantizer) == (4, "acme")


def test_a_preset_that_a_backend_without_rules_does_not_have(install: Callable[..., None]) -> None:
    """The answer of the registry, with the nearest name, at the line of the recipe."""
    install("acme", PRESETS_ONLY, "small")
    with pytest.raises(tq.RecipeError, match="did you mean 'small'") as caught:
        read("\n[[quantizer]]\nbackend = 'acme'\nglobal = 'smal'").quantizer()
    assert caught.value.line == 4


def test_a_backend_that_is_disabled_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why a backend cannot be used comes from the registry; the recipe adds the line."""
    monkeypatch.setenv(registry.BLOCK_VARIABLE, "xnnpack")
    with pytest.raises(tq.RecipeError, match="disabled") as caught:
        read("\n[[quantizer]]\nbackend = 'xnnpack'").quantizer()
    assert caught.value.line == 3
    assert isinstance(caught.value.__cause__, tq.PluginLoadError)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The path is in the error, which is one of ours, with that of the system as its cause."""
    with pytest.raises(tq.RecipeError) as caught:
        tq.Recipe.load(tmp_path / "r.toml")
    assert caught.value.file == str(tmp_path / "r.toml")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    """The byte that is wrong is named."""
    path = tmp_path / "r.toml"
    path.write_bytes("schema = 1\n# größe".encode("latin-1"))
    with pytest.raises(tq.RecipeError, match="0xf6"):
        tq.Recipe.load(path)


def test_the_first_line_of_an_error_says_where(tmp_path: Path) -> None:
    """File and line stand as compilers write them, so that editors can go there."""
    path = tmp_path / "r.toml"
    path.write_text("schema = 1\n\n[[quantiser]]\n")
    with pytest.raises(tq.RecipeError) as caught:
        tq.Recipe.load(path)
    assert str(caught.value).splitlines() == [
        f'{path}:3: There is no key "quantiser" here.',
        "  key: quantiser",
        "  expected: schema | quantizer",
        "  got: quantiser",
        "  to fix it: did you mean quantizer?",
    ]


def test_an_error_of_a_text_without_a_file_has_its_line() -> None:
    """What was never in a file is told by the line alone."""
    with pytest.raises(tq.RecipeError, match=r"^line 2: There is no key"):
        tq.Recipe.from_toml("schema = 1\nx = 1")


def test_an_error_survives_pickling() -> None:
    """It crosses the border of a process with its place."""
    with pytest.raises(tq.RecipeError) as caught:
        read("\nx = 1")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.file, copy.line, copy.key, str(copy)) == ("r.toml", 2, "x", str(caught.value))


EXAMPLE = tq.Recipe.of(
    tq.ComposableQuantizer(
        [
            ExecuTorchEmbeddingQuantizer().set_module_name('odd "name"', None),
            XNNPACKQuantizer().set_global(NARROW).set_object_type(nn.Linear, DYNAMIC),
            tq.ComposableQuantizer([XNNPACKQuantizer().set_object_type(Block, None)]),
        ]
    )
).to_toml()


@given(st.data())
def test_a_damaged_recipe_is_read_or_refused(data: st.DataObject) -> None:
    """Whatever is deleted from a recipe or typed into it, an error is ours, and its line one of the text."""
    start = data.draw(st.integers(0, len(EXAMPLE)))
    end = data.draw(st.integers(start, min(start + 30, len(EXAMPLE))))
    typed = data.draw(
        st.text(max_size=3) | st.sampled_from(["]", "{", '"', "=", "\n", "#", ".", "1", "true"])
    )
    text = EXAMPLE[:start] + typed + EXAMPLE[end:]
    error = None
    try:
        tq.Recipe.from_toml(text).quantizer()
    except tq.RecipeError as caught:
        error = caught
    assert error is None or error.line is None or 1 <= error.line <= text.count("\n") + 1


# ----------------------------------------------------------------------------------------------------------
# Lines
# ----------------------------------------------------------------------------------------------------------


def places(value: object, steps: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to everything in a document."""
    children: Any = value.items() if isinstance(value, dict) else ()
    children = enumerate(value) if isinstance(value, list) else children
    for step, child in children:
        yield (*steps, step)
        yield from places(child, (*steps, step))


HARD = '''\
# [not.a.table] = "in a comment"
a = 1 # b = 2
"q u" . 'o."t' . z = "# no comment \\" = ["
text = """
[also.no.table]
x = 1 \\""" "" """""
raw = \'\'\'
c:\\\'\'\'
d.e = [ # a comment
  1, [2,
  { f = "}" , g.h = 3 }], # ]
  "\\u005d",
]
date = 2020-01-01 10:00:00

[ t . "u.v" ]  # [x]
w = { }
[[t."u.v".list]]
[[t."u.v".list]]
y = true
[t."u.v".list.deep]
z = 1.5e3
[[t."u.v".list.array]]
v = \'\'
[t]
last = [
]'''

HARD_LINES = {
    ("a",): 2,
    ("q u",): 3, ("q u", 'o."t'): 3, ("q u", 'o."t', "z"): 3,
    ("text",): 4,
    ("raw",): 7,
    ("d",): 9, ("d", "e"): 9, ("d", "e", 0): 10, ("d", "e", 1): 10, ("d", "e", 1, 0): 10,
    ("d", "e", 1, 1): 10, ("d", "e", 1, 1, "f"): 10, ("d", "e", 1, 1, "g"): 10,
    ("d", "e", 1, 1, "g", "h"): 10, ("d", "e", 2): 12,
    ("date",): 14,
    ("t",): 16, ("t", "u.v"): 16, ("t", "u.v", "w"): 17,
    ("t", "u.v", "list"): 18, ("t", "u.v", "list", 0): 18, ("t", "u.v", "list", 1): 19,
    ("t", "u.v", "list", 1, "y"): 20,
    ("t", "u.v", "list", 1, "deep"): 21, ("t", "u.v", "list", 1, "deep", "z"): 22,
    ("t", "u.v", "list", 1, "array"): 23, ("t", "u.v", "list", 1, "array", 0): 23,
    ("t", "u.v", "list", 1, "array", 0, "v"): 24,
    ("t", "last"): 26,
}  # fmt: skip


def test_lines_are_found_in_all_that_toml_allows() -> None:
    """Comments, four kinds of strings, dotted and quoted keys, nested arrays and tables do not mislead it.

    What is in an array in an array over several lines has the line of the element of the outer one.
    """
    assert lines_of(HARD) == HARD_LINES
    assert set(places(tomlkit.parse(HARD).unwrap())) == set(HARD_LINES)


keys = st.text("ab.\"' #[]=\\\n", min_size=1, max_size=3) | st.sampled_from(["a", "b", "c"])
scalars = st.text("ab\"'#[]{}=,\\\n\r\t", max_size=6) | st.integers(-9, 9) | st.booleans() | st.floats(-1, 1)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(keys, values, max_size=4))
def test_everything_in_a_document_has_its_line(document: dict[str, Any]) -> None:
    """Each key and element that the parser finds is located, nothing else is, and keys on their own line."""
    text = tomlkit.dumps(document)
    lines = lines_of(text)
    assert set(lines) == set(places(tomlkit.parse(text).unwrap()))
    for steps, line in lines.items():
        key = next(step for step in reversed(steps) if isinstance(step, str))
        if key.isalpha() and isinstance(steps[-1], str):
            assert key in text.split("\n")[line - 1]
