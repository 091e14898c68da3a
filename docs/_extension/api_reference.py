"""Reference of public names: a directive of autodoc for each."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any


def first_sentence(text: str) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join(text.strip().partition("\n\n")[0].split())


def described(value: object) -> str:
    """The first paragraph of the docstring of something."""
    return first_sentence(inspect.getdoc(value) or "")


def comment_of(module: str, name: str) -> str:
    """The ``#:`` comment on a name of a module that is no class and no function."""
    from sphinx.pycode import ModuleAnalyzer

    found = ModuleAnalyzer.for_module(module).find_attr_docs().get(("", name), ())
    return " ".join(" ".join(found).split())


def defining_module(module: str, name: str) -> str:
    """The module that defines a name, which ``module`` may only hand out."""
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    return next(
        (
            str(node.module)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}
        ),
        module,
    )


def _is_of_another(value: Any) -> bool:
    """Whether a class or a function is defined outside of torchquilt, as the private ones of torch."""
    is_code = inspect.isclass(value) or inspect.isroutine(value)
    return is_code and not str(value.__module__).startswith("torchquilt")


def text_of(module: str, name: str) -> str:
    """The text about a public name: its docstring, or its comment. Empty where there is none."""
    value = getattr(importlib.import_module(module), name)
    if _is_of_another(value):
        return f"Of {value.__module__.partition('.')[0]}: ``{value.__module__}.{value.__qualname__}``."
    if isinstance(value, ModuleType) or inspect.isclass(value) or inspect.isroutine(value):
        return inspect.getdoc(value) or ""
    if hasattr(value, "text") and hasattr(value, "code"):  # a constraint
        return f"Holds where {value.text}. Code: ``{value.code}``."
    return comment_of(defining_module(module, name), name)


def members_of(module: str, names: Iterable[str]) -> Iterator[str]:
    """Directives of autodoc for public names of a module, in reStructuredText."""
    for name in names:
        value = getattr(importlib.import_module(module), name)
        full = f"{module}.{name}"
        if not text_of(module, name):
            raise LookupError(f"{full} is public, and nothing documents it")
        if isinstance(value, ModuleType):
            yield f".. py:data:: {full}\n\n   Module. {described(value)}\n"
        elif _is_of_another(value):
            yield f".. py:data:: {full}\n\n   {text_of(module, name)}\n"
        elif inspect.isclass(value):
            kind = "autoexception" if issubclass(value, BaseException) else "autoclass"
            yield f".. {kind}:: {full}\n   :members:\n   :show-inheritance:\n"
        elif inspect.isroutine(value):
            yield f".. autofunction:: {full}\n"
        else:
            yield f".. py:data:: {full}\n\n   {text_of(module, name)}\n"
