"""Imports of a plugin: the public face of torchquilt keeps, other modules of the core may move.

A plugin works as long as what it imports is there, so this warns and refuses nothing.
"""

from __future__ import annotations

import ast
import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path

import torchquilt
from torchquilt import backend as public_face
from torchquilt.testing.subject import Subject

#: Modules of the core that a plugin may import; the kit in its tests.
PUBLIC = (
    "torchquilt",
    "torchquilt.backend",
    "torchquilt.errors",
    "torchquilt.observers",
    "torchquilt.testing",
)


class NotPublicWarning(UserWarning):
    """A plugin imports a module of torchquilt that is not public."""


def not_public(source: str) -> Iterator[tuple[int, str]]:
    """Line of each import of a module that is not public, and what to write instead."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [(str(node.module), alias.name) for alias in node.names]
        else:
            continue
        for module, name in names:
            if module.partition(".")[0] == "torchquilt" and module not in PUBLIC:
                yield node.lineno, f"{module} is not public: {_instead(name)}"


def _instead(name: str) -> str:
    if name in public_face.__all__:
        return f"write from torchquilt.backend import {name}"
    if name in torchquilt.__all__:
        return f"write from torchquilt import {name}"
    return f"torchquilt.backend has nothing in its stead; ask for {name or 'it'} to be made public"


def _sources(subject: Subject) -> list[Path]:
    """Files of the package that the class is in."""
    found = importlib.util.find_spec(subject.cls.__module__.partition(".")[0])
    if found is None or found.origin is None:
        return []
    path = Path(found.origin)
    return sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]


def test_the_package_imports_the_public_face(subject: Subject) -> None:
    """Imports of other modules are warned of, each with the import to write instead."""
    for path in _sources(subject):
        for line, text in not_public(path.read_text(encoding="utf-8")):
            warnings.warn(f"{path.name}:{line}: {text}", NotPublicWarning, stacklevel=1)
