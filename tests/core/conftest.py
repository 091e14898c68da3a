"""Fixtures that tests of more than one part of the core need."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import importlib_metadata
import pytest

from plugin_sites import Site
from torchquilt.plugins import registry


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A folder for plugins that is the only one looked at, whatever is installed where the tests run."""
    site = Site(tmp_path / "site")
    site.folder.mkdir()
    find = importlib_metadata.distributions
    monkeypatch.setattr(importlib_metadata, "distributions", lambda: find(path=[str(site.folder)]))
    monkeypatch.syspath_prepend(str(site.folder))
    monkeypatch.delenv(registry.ALLOW_VARIABLE, raising=False)
    monkeypatch.delenv(registry.BLOCK_VARIABLE, raising=False)
    before = set(sys.modules)
    yield site
    for module in set(sys.modules) - before:
        if str(site.folder) in (getattr(sys.modules[module], "__file__", None) or ""):
            del sys.modules[module]
