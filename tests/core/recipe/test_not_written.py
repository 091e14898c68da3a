"""Quantizers that no recipe can describe are refused by name when they are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

import torchquilt as tq
from recipes import PRESETS_ONLY, STATIC
from strategies import Nothing
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import SUPPORT, XNNPACKQuantizer


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
        tq.Recipe.of(7)


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
