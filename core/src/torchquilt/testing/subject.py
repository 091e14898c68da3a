"""The backend under test: its class, its table and, where it is installed, what the registry knows of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import attrs
from torch import nn

from torchquilt.errors import PatternError, PluginLoadError
from torchquilt.plugins.registry import Backend, backends, quantizer
from torchquilt.quantizers.pattern_quantizer import PatternQuantizer
from torchquilt.support.table import SupportRow, SupportTable

#: Makes a module, and the inputs to export and run it with.
ModelBuilder: TypeAlias = Callable[[], tuple[nn.Module, tuple[Any, ...]]]


@attrs.frozen(eq=False)
class Subject:
    """Subject of the tests.

    Args:
        name: what the user asked for.
        cls: the class of its quantizer.
        table: what it claims.
        backend: its record in the registry, None where the class was named and nothing is installed.
    """

    name: str
    cls: type[PatternQuantizer]
    table: SupportTable
    backend: Backend | None

    @property
    def rows(self) -> tuple[SupportRow, ...]:
        """The rows of the table."""
        return self.table.rows

    def supplied(self, pattern: str) -> tuple[ModelBuilder, ...]:
        """Example that the author supplies to try a pattern with."""
        found = getattr(self.cls, "conformance_examples", {}).get(pattern, ())
        return (found,) if callable(found) else tuple(found)

    @property
    def exemptions(self) -> Mapping[str, str]:
        """Exemptions that the author names (``target:NAME``, ``constraint:CODE``) → the reason."""
        found: Mapping[str, str] = getattr(self.cls, "conformance_exemptions", {})
        return found


def row_id(row: SupportRow) -> str:
    """Identity of a row among the others of its table."""
    return f"{row.pattern.name}-{row.mode}"


def installed(name: str) -> Subject:
    """The backend that is installed under a name.

    Raises:
        PluginError: it is not installed, or cannot be loaded.
        PatternError: it has no support table.
    """
    made = quantizer(name)
    (record,) = [backend for backend in backends() if backend.name == name.replace("-", "_")]
    return _with_table(name, type(made), record)


def named(reference: str) -> Subject:
    """The class at ``"package.module:Class"``, which need not be installed.

    Raises:
        PluginLoadError: there is no such class.
        PatternError: it has no support table.
    """
    module, _, name = reference.partition(":")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise PluginLoadError(
            f"There is no quantizer at {reference!r}.",
            expected="an importable 'package.module:Class'",
            got=f"{type(error).__name__}: {error}",
        ) from error
    return _with_table(reference, cls, None)


def _with_table(name: str, cls: type, backend: Backend | None) -> Subject:
    table = getattr(cls, "TABLE", None)
    if not (issubclass(cls, PatternQuantizer) and isinstance(table, SupportTable)):
        raise PatternError(
            f"{cls.__name__} claims nothing that could be tested.",
            quantizer=name,
            expected="a subclass of torchquilt.PatternQuantizer that has a SupportTable as TABLE",
            got=f"TABLE is {table!r}",
            remedy="write down in a SupportTable what the backend supports",
        )
    return Subject(name, cls, table, backend)
