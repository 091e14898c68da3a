"""Texts that are no recipe are refused when they are read, with the line and the key that are wrong."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import torchquilt as tq
from recipes import DYNAMIC, NARROW, PRESETS_ONLY, Block, read
from torchquilt.plugins import registry
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer


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
    """A mistake in the recipe itself is refused at once, with file, line, key and what would do."""
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
        f"{_X}global = 'static_int'",
        4,
        "quantizer[0].global",
        ("no preset", "static_int8 |", "did you mean 'static_int8'"),
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
    """A name that no installed backend knows is refused with file, line and key, and the cause is kept."""
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
    """The registry says why a backend cannot be used; the recipe adds the line."""
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
    """The error of a text without a file has the line alone."""
    with pytest.raises(tq.RecipeError, match=r"^line 2: There is no key"):
        tq.Recipe.from_toml("schema = 1\nx = 1")


def test_an_error_survives_pickling() -> None:
    """It crosses from one process to another with its location."""
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
