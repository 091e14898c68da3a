"""Quantizers of other packages, as the bridges to these list them: whether they can be used here.

Nothing is imported for it, neither the packages nor torch.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder

import importlib_metadata

from torchquilt.plugins.listing import Backend, ForeignBackend
from torchquilt.plugins.manifest import Requirement


def foreign_backends(records: Iterable[Backend]) -> Iterator[ForeignBackend]:
    """The quantizers that the bridges among some plugins list, with what is missing to use them."""
    for record in records:
        if record.status != "ok" or record.manifest is None:
            continue
        for info in record.manifest.foreign:
            version = _version(info.distribution)
            missing = tuple(need for need in info.needs if not _is_met(need))
            yield ForeignBackend(
                info.name, info.summary, record.name, info.quantizer, info.distribution, version, missing
            )


def _version(distribution: str) -> str | None:
    try:
        return importlib_metadata.version(distribution)
    except importlib_metadata.PackageNotFoundError:
        return None


def _is_met(need: Requirement) -> bool:
    return bool(os.environ.get(need.variable)) if need.variable else _is_installed(need.module)


def _is_installed(module: str) -> bool:
    """Whether a module is there. Its packages are walked through, and not imported."""
    first, *others = module.split(".")
    try:
        found = importlib.util.find_spec(first)
    except ValueError:  # a module that something put there, of which nothing is recorded
        return not others
    for depth in range(len(others)):
        if found is None:
            return False
        name = ".".join([first, *others[: depth + 1]])
        found = PathFinder.find_spec(name, found.submodule_search_locations or [])
    return found is not None
