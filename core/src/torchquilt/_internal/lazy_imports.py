"""Names of a package that are imported when they are first used.

Listing the installed plugins imports their packages, and must not import torch; so none of them imports what
it offers at once. Imports nothing of torchquilt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    namespace: dict[str, Any], module_of: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package or module (PEP 562), which binds a name once it was
    asked for.

    Type checkers are to be told the same with imports under ``TYPE_CHECKING``, and not to see this call: in
    their eyes a module with a ``__getattr__`` has every attribute.

    Args:
        namespace: the ``globals()`` of the package, or of a module in it. It has ``__all__`` by the time it
            is looked into.
        module_of: name → the module below the package that defines it, or the package that the name is a
            module of; empty for a module of the package itself.
    """
    name_of_module, package = namespace["__name__"], namespace["__package__"]

    def get(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {name_of_module!r} has no attribute {name!r}")
        if not module_of[name]:
            return import_module(f"{package}.{name}")  # which binds it
        module = import_module(f"{package}.{module_of[name]}")
        if not hasattr(module, name):  # a module in a package that does not import it
            import_module(f"{module.__name__}.{name}")
        value = namespace[name] = getattr(module, name)
        return value

    def names() -> list[str]:
        return sorted({*namespace, *namespace["__all__"]})

    return get, names
