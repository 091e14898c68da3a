"""The house: rooms at the top of the core, one public face for plugins, and docs that name all of it."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "core/src/torchquilt"
ROOMS = sorted(path.parent.name for path in CORE.glob("*/__init__.py"))
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))

#: Modules at the top of the core: what users and authors of plugins import, and what every room reads.
AT_THE_TOP = {"__init__", "__main__", "backend", "errors", "qat", "reasons", "recovery"}
PUBLIC = {"torchquilt", "torchquilt.backend", "torchquilt.errors", "torchquilt.observers"}


def imported(source: str) -> set[str]:
    """Modules that a source imports names from."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
    return found


def of_the_core(modules: set[str]) -> set[str]:
    """Those modules that are of the core."""
    return {name for name in modules if name.partition(".")[0] == "torchquilt"}


def sources_of_plugins() -> list[Path]:
    """Modules of our plugins and of the example."""
    return sorted([*ROOT.glob("plugins/*/src/*/*.py"), *ROOT.glob("examples/acme_npu/src/*/*.py")])


def test_the_top_of_the_core_has_rooms_and_few_modules() -> None:
    """A new module belongs into a room."""
    assert {path.stem for path in CORE.glob("*.py")} <= AT_THE_TOP


@pytest.mark.parametrize("path", sources_of_plugins(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_plugin_imports_the_public_face_alone(path: Path) -> None:
    """No module of a plugin imports from a room of the core."""
    assert of_the_core(imported(path.read_text(encoding="utf-8"))) <= PUBLIC


@pytest.mark.parametrize("page", ["docs/writing-a-plugin.md", "CONTRIBUTING.md"])
def test_the_docs_for_authors_import_the_public_face_alone(page: str) -> None:
    """Code that docs and examples show to be copied imports only what a plugin may import."""
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = set(re.findall(r"^ *from (torchquilt(?:\.\w+)*) import ", text, re.M))
    assert shown
    assert shown <= PUBLIC | {"torchquilt.testing"}


def test_the_contract_about_plugins_names_each_room() -> None:
    """A room that is new is forbidden to plugins until it is listed as public."""
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = [one for one in linter["contracts"] if one["id"] == "plugins-import-the-public-face"]
    rooms = {f"torchquilt.{room}" for room in ROOMS}
    assert set(contract["forbidden_modules"]) == rooms - PUBLIC
    assert set(contract["source_modules"]) == {f"torchquilt_{name}" for name in PLUGINS}


def for_type_checkers(path: Path) -> dict[str, str]:
    """Name → module, for what a module imports under ``TYPE_CHECKING``."""
    block = next(
        node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.If)
    )
    return {
        str(alias.asname): str(node.module).removeprefix("torchquilt.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_the_public_face_is_the_same_for_type_checkers_and_at_run_time() -> None:
    """The lazy table and the imports for type checkers name the same things in the same modules."""
    backend = importlib.import_module("torchquilt.backend")
    assert for_type_checkers(CORE / "backend.py") == backend._MODULE_OF


def test_each_name_of_the_public_face_can_be_had_and_is_documented() -> None:
    """Each name is there, ``dir()`` shows it, and classes and functions have a docstring."""
    backend = importlib.import_module("torchquilt.backend")
    assert set(backend.__all__) <= set(dir(backend))
    values = {name: getattr(backend, name) for name in backend.__all__}
    assert [
        name
        for name, value in values.items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and backend._MODULE_OF.get(name) != "_internal.torch_private"
        and not inspect.getdoc(value)
    ] == []


def test_a_name_that_the_public_face_lacks_is_an_attribute_error() -> None:
    """The error names the module and the name."""
    backend = importlib.import_module("torchquilt.backend")
    with pytest.raises(AttributeError, match=r"'torchquilt.backend' has no attribute 'manifset'"):
        backend.manifset  # noqa: B018


def test_what_a_manifest_needs_loads_no_torch() -> None:
    """The names for a manifest, and those for a table, are had without torch."""
    code = (
        "import sys; from torchquilt.backend import Manifest, PresetInfo, hookimpl, lazy_names, SupportTable;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_docs_name_each_room_and_plugin() -> None:
    """docs/architecture.md has a row for each room, in the order of the contract, and one for each plugin."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(\w+)/` \|", text, re.M)
    assert sorted(named) == ROOMS
    assert set(PLUGINS) <= set(re.findall(r"^\| `(\w+)` \|", text, re.M))
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = [one for one in linter["contracts"] if one["id"] == "core-layers"]
    layers = [layer.strip("()") for layer in reversed(contract["layers"])]
    assert [room for room in layers if room in ROOMS] == [
        *named[: named.index("testing")], *(room for room in named if room in ("testing", "cli"))
    ]  # fmt: skip


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_is_in_it(room: str) -> None:
    """The docstring of a room is more than its name."""
    text = ast.get_docstring(ast.parse((CORE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert len(text) > 60
