"""Imports between modules, and the front door of each package, which says what is behind it.

``import-linter`` holds the order of the modules; its contracts are in the root ``pyproject.toml``. What it
cannot say (a part of torch, a private name, when torch is loaded) is read here from the sources.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import torchquilt
from torchquilt import errors

ROOT = Path(__file__).resolve().parents[1]
SOURCE_FOLDERS = [ROOT / "core/src", *sorted(ROOT.glob("plugins/*/src"))]
SHIPPED = {
    ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in SOURCE_FOLDERS
    for path in sorted(folder.rglob("*.py"))
}
PLUGIN_PACKAGES = [next(folder.glob("torchquilt_*")).name for folder in SOURCE_FOLDERS[1:]]

# The ops of the q/dq dialect are defined there, and importing the module is what registers them.
ALLOWED_OF_TORCH_AO = "torch.ao.quantization.fx._decomposed"


QUESTIONS = ("What ", "Where ", "Which ", "Who ", "Whom ", "How ", "Why ", "When ")


def imported_names(tree: ast.AST) -> Iterator[str]:
    """The full name of everything that a module imports: ``from a import b`` is ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: shipped code imports by full names"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def attribute_chains(tree: ast.AST) -> Iterator[str]:
    """Dotted names as they are used: ``torch.ao.quantization`` needs no import of its own to be reached."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def begins_with(name: str, package: str) -> bool:
    """Whether a dotted name is that of a package or of something in it."""
    return name == package or name.startswith(f"{package}.")


def in_fresh_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own, at the root of the repository, that finds the same packages."""
    path = os.pathsep.join(map(str, [*SOURCE_FOLDERS, *filter(None, sys.path)]))
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_imports_keep_to_the_contracts() -> None:
    """import-linter finds no import against the layers, into a plugin, or between plugins."""
    done = in_fresh_python(
        "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    )
    assert done.returncode == 0, done.stdout + done.stderr


def lowers(module: str) -> bool:
    """Whether a module is of a lowering target, or says what a backend gives to one."""
    return begins_with(module, "torchquilt_executorch") or (
        module.endswith((".lowering", ".layout", ".parts")) and not begins_with(module, "torchquilt")
    )


@pytest.mark.parametrize("module", SHIPPED)
def test_shipped_code_uses_nothing_of_other_quantization_stacks(module: str) -> None:
    """No module imports torchao, nor of torch.ao more than the ops of the q/dq dialect.

    The bridge to torchao imports torchao. A runtime is imported where models are lowered to it, and nowhere
    else.
    """
    tree = ast.parse(SHIPPED[module].read_text())
    imported = set(imported_names(tree))
    is_bridge = begins_with(module, "torchquilt_torchao")
    strays = {name for name in imported if begins_with(name, "torchao") and not is_bridge}
    if not lowers(module):
        strays |= {name for name in imported if begins_with(name, "executorch")}
    strays |= {
        name
        for name in imported | set(attribute_chains(tree))
        # "torch.ao" alone is the inner part of every longer chain, which is judged by itself.
        if begins_with(name, "torch.ao")
        and not begins_with(name, ALLOWED_OF_TORCH_AO)
        and not begins_with(ALLOWED_OF_TORCH_AO, name)
    }
    assert not strays


@pytest.mark.parametrize("module", [name for name in SHIPPED if not begins_with(name, "torchquilt")])
def test_a_plugin_uses_only_public_names_of_the_core(module: str) -> None:
    """A plugin of ours imports from the core what a third party could: no part of a name is private."""
    private = [
        name
        for name in imported_names(ast.parse(SHIPPED[module].read_text()))
        if begins_with(name, "torchquilt") and any(part.startswith("_") for part in name.split("."))
    ]
    assert not private


def modules_without_torch() -> list[str]:
    """The modules that every listing imports, and those whose docstring promises to be free of torch."""
    promise = re.compile(r"\b(not import|imports? no|imports? neither) torch\b")
    promised = {
        name
        for name, path in SHIPPED.items()
        if promise.search(" ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split()))
    }
    listed = {
        "torchquilt",
        "torchquilt.lowering",
        "torchquilt.plugins.registry",
        *(f"{name}.plugin" for name in PLUGIN_PACKAGES),
    }
    return sorted(promised | listed)


@pytest.mark.parametrize("module", modules_without_torch())
def test_a_module_that_is_to_be_free_of_torch_is(module: str) -> None:
    """Importing it in a fresh interpreter leaves torch unloaded."""
    done = in_fresh_python(f"import sys, {module}; sys.exit('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr or f"{module} loads torch"


def names_for_type_checkers(package: str) -> dict[str, str]:
    """Imports under ``if TYPE_CHECKING:`` in an ``__init__``: name -> module within the package."""
    tree = ast.parse(SHIPPED[package].read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    return {
        str(alias.asname): f"{node.module}.".removeprefix(f"{package}.").removesuffix(".")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize("package", ["torchquilt", *PLUGIN_PACKAGES])
def test_type_checkers_see_what_is_there_at_run_time(package: str) -> None:
    """The lazy table and the imports for type checkers name the same things in the same modules."""
    assert names_for_type_checkers(package) == importlib.import_module(package)._MODULE_OF


@pytest.mark.parametrize("package", ["torchquilt", *PLUGIN_PACKAGES])
def test_every_public_name_can_be_had(package: str) -> None:
    """Each name in ``__all__`` is an attribute of the package, and ``dir()`` shows it."""
    module = importlib.import_module(package)
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert not missing
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize("package", ["torchquilt", *PLUGIN_PACKAGES])
def test_a_name_that_is_not_there_is_an_attribute_error(package: str) -> None:
    """A misspelt name fails as it does with every module, so that ``hasattr`` and ``getattr`` work."""
    with pytest.raises(AttributeError, match="no attribute 'quantzier'"):
        importlib.import_module(package).quantzier  # noqa: B018


@pytest.mark.parametrize("package", ["torchquilt", *PLUGIN_PACKAGES])
def test_no_public_name_is_that_of_a_module(package: str) -> None:
    """A submodule becomes an attribute when it is imported, and would hide a public name that is the same."""
    module = importlib.import_module(package)
    submodules = {info.name for info in pkgutil.iter_modules(module.__path__)}
    same = submodules & set(module.__all__)
    hidden = [name for name in same if not inspect.ismodule(getattr(module, name))]
    assert not hidden  # a public module, as ``torchquilt.qat``, is not hidden by itself


def test_every_error_is_public() -> None:
    """Users can catch each error by a name of ``torchquilt``."""
    defined = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception) and not name.startswith("_")
    }
    assert defined <= set(torchquilt.__all__)


def test_docstrings_begin_with_what_a_thing_is_or_does() -> None:
    """None begins with a question word, which makes the reader wait for the subject; tests are held to it."""
    beside = [
        path for folder in ("tests", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")
    ]
    strays = [
        f"{path.relative_to(ROOT)}: {text.splitlines()[0]}"
        for path in {*SHIPPED.values(), *beside}
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and (text := ast.get_docstring(node) or "").startswith(QUESTIONS)
    ]
    assert strays == []


def test_a_function_fits_on_a_screen() -> None:
    """Without its docstring none has more than 50 lines."""
    long = {
        f"{module}.{node.name}": length
        for module, path in SHIPPED.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (length := lines_of(node)) > 50
    }
    assert long == {}


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    told = ast.get_docstring(function) is not None
    first = function.body[0]
    hidden = (first.end_lineno or 0) - first.lineno + 1 if told else 0
    return (function.end_lineno or 0) - function.lineno + 1 - hidden
