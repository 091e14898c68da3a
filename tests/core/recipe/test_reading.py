"""Recipes are read: TOML becomes quantizers."""

from __future__ import annotations

from collections.abc import Callable
from operator import neg
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from torch import nn

import torchquilt as tq
from recipes import DYNAMIC, NARROW, PRESETS_ONLY, STATIC, Block, in_fresh_python, only, read
from torchquilt import recipe as recipe_module
from torchquilt.recipe import RecipePart, RecipeRule
from torchquilt.spec.dtypes import NamedDtype
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer


def test_the_example_of_the_documentation_makes_its_quantizers() -> None:
    """The docstring of the module shows a recipe, and all of it can be asked for."""
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
    """A recipe is a value of texts and numbers, with the fields that were left out filled in."""
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
    """A byte order mark, as some editors of Windows write it, is skipped."""
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
        ("torch.Tensor.relu", torch.Tensor.relu),
        ("torch.Tensor.add", torch.Tensor.add),
        ("torch.Tensor.sin", torch.Tensor.sin),
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
    """A recipe says which backend is meant if several packages have one of that name."""
    text = '\n[[quantizer]]\nbackend = "xnnpack"\ndistribution = "{}"'
    assert only(read(text.format("torchquilt-xnnpack"))) == XNNPACKQuantizer()
    with pytest.raises(tq.RecipeError) as caught:
        read(text.format("acme-quilt")).quantizer()
    assert (caught.value.line, caught.value.key) == (3, "quantizer[0].backend")
    assert "torchquilt-xnnpack" in str(caught.value.expected)


def test_a_backend_without_rules_takes_a_preset(install: Callable[..., None]) -> None:
    """A backend whose class is no table with an intent can be made from a preset, or as it is."""
    install("acme", PRESETS_ONLY, "small")
    text = '\n[[quantizer]]\nbackend = "acme"'
    (plain,) = read(text).quantizer().quantizers
    (small,) = read(text + '\nglobal = "small"').quantizer().quantizers
    assert (plain.subject.preset, small.subject.preset) == (None, "small")  # type: ignore[attr-defined]
