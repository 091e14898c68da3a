"""A backend for the tests of recipes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Puts a backend on the path whose class is the one of this source."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    loaded = set(sys.modules)

    def put(name: str, source: str, *presets: str, distribution: str = "acme-quilt") -> None:
        module = distribution.replace("-", "_")
        info = folder / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[torchquilt]\n{name} = {module}\n")
        (folder / f"{module}_code.py").write_text(dedent(source))
        (folder / f"{module}.py").write_text(
            "from torchquilt.plugins import Manifest, PresetInfo, hookimpl\n"
            "@hookimpl\n"
            "def torchquilt_manifest():\n"
            f"    presets = tuple(PresetInfo(name, 'a preset') for name in {presets!r})\n"
            f"    return Manifest(name={name!r}, api=1, summary='for tests', presets=presets,\n"
            f"                    quantizer='{module}_code:Acme')\n"
        )

    yield put
    for module in set(sys.modules) - loaded:
        if module.startswith("acme"):
            del sys.modules[module]
