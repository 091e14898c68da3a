"""The site documents each public name, command, option, preset, recipe key and code."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import attrs
import pytest

import torchquilt as tq
from api_reference import members_of, text_of
from generated_tables import GENERATED, MARKER, all_commands, filled, options_of, ready_constraints
from support_matrix import MatrixRow, installed_rows, rows_of
from torchquilt.cli.application import application
from torchquilt.plugins.registry import quantizer_class
from torchquilt.reasons import CAUTIONS, LOWERING_STATUSES, REASONS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {
    page.relative_to(DOCS).as_posix(): page.read_text(encoding="utf-8")
    for page in sorted(DOCS.rglob("*.md"))
    if "_build" not in page.parts
}
#: Parameters that mean the same everywhere; the page of torchquilt.backend says what.
CONVENTIONAL = {"model", "node", "match"}
#: Modules whose public names have a page.
MODULES = (
    "torchquilt",
    "torchquilt.qat",
    "torchquilt.recovery",
    "torchquilt.observers",
    "torchquilt.backend",
)


def asked_for(kind: str) -> Iterator[tuple[str, ...]]:
    """The arguments of each comment of a kind, over all pages."""
    for text in PAGES.values():
        for found in MARKER.finditer(text):
            if found[1] == kind:
                yield tuple(found[2].split())


@pytest.mark.parametrize("kind", sorted(set(GENERATED) - {"api", "file"}))
def test_each_generated_text_is_on_one_page(kind: str) -> None:
    """A text that can be generated is shown on one page, once."""
    assert len([*asked_for(kind)]) == 1


@pytest.mark.parametrize("module", MODULES)
def test_each_public_name_is_in_the_reference_once(module: str) -> None:
    """A name of ``__all__`` that no page asks for is undocumented; names of torchquilt stand once."""
    listed = Counter(name for found, *names in asked_for("api") if found == module for name in names)
    public = set(importlib.import_module(module).__all__) - {"__version__"}
    elsewhere = set() if module == "torchquilt" else set(tq.__all__)
    modules = {name for name in public if module == "torchquilt" and name in ("qat", "recovery")}
    assert public - set(listed) - elsewhere - modules == set()
    assert set(listed) - public == set()
    assert [name for name, times in listed.items() if times > 1] == []


@pytest.mark.parametrize("module", MODULES)
def test_each_public_name_has_a_text(module: str) -> None:
    """A class or function has a docstring, a constant a comment."""
    names = set(importlib.import_module(module).__all__) - {"__version__"}
    assert [name for name in sorted(names) if len(text_of(module, name)) < 10] == []


def public_members(cls: type) -> Iterator[tuple[str, object]]:
    """Methods and properties that a class of ours defines."""
    for name, value in vars(cls).items():
        if not name.startswith("_") and (
            inspect.isroutine(value) or isinstance(value, (property, classmethod, staticmethod))
        ):
            yield name, value


@pytest.mark.parametrize("module", MODULES)
def test_each_method_and_field_of_a_public_class_is_documented(module: str) -> None:
    """A method has a docstring; the fields of a value are named in the docstring of its class."""
    missing = []
    for name in importlib.import_module(module).__all__:
        cls = getattr(importlib.import_module(module), name)
        if not inspect.isclass(cls) or not cls.__module__.startswith("torchquilt"):
            continue
        missing += [
            f"{name}.{member}"
            for member, _ in public_members(cls)
            if not inspect.getdoc(getattr(cls, member))
        ]
        fields = attrs.fields(cls) if attrs.has(cls) else ()
        text = "".join(inspect.getdoc(base) or "" for base in cls.__mro__[:-1])
        missing += [
            f"{name}.{field.name}"
            for field in fields
            if field.init and field.name[0] != "_" and not re.search(rf"\b{field.name}\b", text)
        ]
    assert missing == []


@pytest.mark.parametrize("module", MODULES)
def test_each_parameter_of_a_public_function_is_documented(module: str) -> None:
    """The docstring of a function names each parameter, or the function that explains it."""
    holder = importlib.import_module(module)
    functions = {
        name: value
        for name in holder.__all__
        if inspect.isfunction(value := getattr(holder, name)) and value.__module__.startswith("torchquilt")
    }
    missing = [
        f"{name}({parameter})"
        for name, function in functions.items()
        for parameter in set(inspect.signature(function).parameters) - CONVENTIONAL
        if not re.search(
            rf"\b{parameter}\b|as there|explained there|see :func:", inspect.getdoc(function) or ""
        )
    ]
    assert missing == []


def test_a_name_without_a_text_is_an_error() -> None:
    """The site is not built around a public name that nothing documents."""
    module = ModuleType("undocumented")
    module.something = type("Something", (), {"__module__": "torchquilt.here"})  # type: ignore[attr-defined]
    import sys

    sys.modules["undocumented"] = module
    try:
        with pytest.raises(LookupError, match=r"undocumented\.something is public"):
            list(members_of("undocumented", ["something"]))
    finally:
        del sys.modules["undocumented"]


def test_each_command_and_option_has_help() -> None:
    """A command has a text, and each of its options and that text stand in the page of commands."""
    page = filled(PAGES["reference/commands.md"])
    assert re.findall(r"^[ \t]+\S.*", page, re.M) == []  # Markdown would show it as code
    for name, command in all_commands(application, "torchquilt"):
        assert command.help, name
        assert f"\n### {name}\n" in page
        for option in options_of(command):
            assert option.help, (name, option.opts)
            assert all(f"`{word}`" in page for word in option.opts), (name, option.opts)


def test_each_preset_is_listed_with_its_specs() -> None:
    """Each preset of an installed backend has a row: what it quantizes, and its specs."""
    page = filled(PAGES["reference/presets.md"])
    for backend in tq.backends():
        assert backend.manifest is not None
        assert set(quantizer_class(backend.name).PRESETS) == {info.name for info in backend.manifest.presets}
        for info in backend.manifest.presets:
            (row,) = re.findall(rf"^\| `{backend.name}:{info.name}` \| (.*) \| (.*) \|$", page, re.M)
            assert row[0] == info.summary
            assert re.search(r"\b(input|weight)\b.*: u?int(8|16)", row[1]), row


def test_each_code_has_its_meaning_and_remedy() -> None:
    """Reasons, lowering statuses and warnings of ranges are in one page, with what to do about a reason."""
    page = filled(PAGES["reference/reason-codes.md"])
    for reason in REASONS:
        section = page.split(f"### `{reason.label}`\n")[1].partition("###")[0]
        assert reason.meaning.replace("``", "`") in section
        assert reason.remedy in section
    for code in (*LOWERING_STATUSES, *CAUTIONS):
        assert f"| `{code.code}` | {code.meaning} |" in page


def keys_that_a_recipe_may_have() -> set[str]:
    """Keys that the reader of recipes takes, from its source: those of tables, of configs and of specs."""
    source = (ROOT / "core/src/torchquilt/recipe/toml_reader.py").read_text(encoding="utf-8")
    asked = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_table"
    ]
    texts = {
        part.value
        for call in asked
        for value in (*call.args[2:], *(keyword.value for keyword in call.keywords))
        for part in ast.walk(value)
        if isinstance(part, ast.Constant)
    }
    rules = {"name", "class"}  # the reader chooses one of the two
    specs = {field.name for field in attrs.fields(tq.QuantizationSpec)}
    return texts | rules | specs | set(importlib.import_module("torchquilt.backend").ROLES)


def test_each_key_of_a_recipe_is_documented() -> None:
    """The tables of the page have the keys that the reader takes, and no others."""
    page = PAGES["reference/recipe.md"]
    cells = re.findall(r"^\| (`[^|]+`) \| ", page, re.M)
    assert {key for cell in cells for key in re.findall(r"`(\w+)`", cell)} == keys_that_a_recipe_may_have()


def test_the_recipe_of_the_page_is_one() -> None:
    """It can be read, and each of its rules makes a quantizer."""
    (text,) = re.findall(r"```toml\n(.*?)```", PAGES["reference/recipe.md"], re.DOTALL)
    assert len(tq.Recipe.from_toml(text).quantizer().quantizers) == 2


def test_each_ready_constraint_and_operator_is_listed() -> None:
    """Authors find each in a table of its page."""
    page = filled(PAGES["authors/constraints.md"])
    assert [name for name, _ in ready_constraints() if f"| `{name}` |" not in page] == []
    operators = importlib.import_module("torchquilt.backend").OPERATORS
    page = filled(PAGES["authors/operators.md"])
    assert [one.name for one in operators if f"| `{one.name}` |" not in page] == []


def test_the_matrix_has_each_row_of_each_table() -> None:
    """A row of a backend's table is in the matrix, with its targets, bits and conditions."""
    rows = installed_rows()
    for backend in tq.backends():
        table = quantizer_class(backend.name).backend_capabilities()
        assert set(rows_of(table)) <= set(rows)
        assert {row.backend for row in rows_of(table)} == {backend.name}
    linear = [row for row in rows if (row.backend, row.pattern, row.mode) == ("xnnpack", "linear", "dynamic")]
    assert {row.bits for row in linear} >= {("a8", "w4"), ("a8", "w8")}
    assert all(isinstance(row, MatrixRow) and "executorch" in row.targets for row in linear)


def test_the_parity_table_says_what_the_tables_say() -> None:
    """An operator that does the work of a row is a yes, one that is only fused is told so."""
    preset = "static_int8_per_channel"
    section = filled(PAGES["reference/parity.md"]).split(f"### {preset}\n")[1].partition("###")[0]
    head, _, *lines = [line.strip("| ").split(" | ") for line in section.strip().splitlines()]
    cells = {
        line[0].strip("`"): dict(zip(head[1:], (*line[1:], *[""] * len(head)), strict=False))
        for line in lines
    }
    for backend in head[1:]:
        rows = quantizer_class(backend).backend_capabilities().filter(preset=preset).rows
        works = {row.working for row in rows}
        together = {name for row in rows for name in row.operators} - works
        found = {name: row[backend].strip() for name, row in cells.items()}
        assert {name for name, cell in found.items() if cell == "yes"} == works
        assert {name for name, cell in found.items() if cell == "fused"} == together


def test_the_house_has_each_room() -> None:
    """The picture has a floor for each folder of the core, and each plugin."""
    picture = filled(PAGES["architecture.md"])
    rooms = [path.parent.name for path in ROOT.glob("core/src/torchquilt/[a-z]*/__init__.py")]
    plugins = [path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")]
    assert [name for name in (*rooms, *plugins) if f"<li><code>{name}</code>" not in picture] == []
