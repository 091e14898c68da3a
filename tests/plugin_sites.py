"""Folders of plugins that the tests make up and really put on disk."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import attrs

from torchquilt.plugins import API

CLASS = """
    class Quantizer:
        def __init__(self, preset=None):
            self.preset = preset

        @classmethod
        def from_preset(cls, name):
            return cls(name)
"""


@attrs.define
class Site:
    """A folder of installed packages. ``plugin`` installs one that works, unless a test says otherwise."""

    folder: Path

    def install(
        self, distribution: str, entry_points: str, modules: dict[str, str], version: str = "1.0"
    ) -> Path:
        """Put modules and the metadata of a distribution where an installer would put them."""
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entry_points)
        for module, source in modules.items():
            (self.folder / f"{module}.py").write_text(dedent(source))
        return info

    def plugin(
        self,
        name: str,
        *,
        distribution: str | None = None,
        source: str | None = None,
        api: int = API,
        cls: str = CLASS,
    ) -> Path:
        """Install a backend with two presets; ``source`` replaces the text of its plugin module."""
        distribution = distribution or f"{name}-quilt"
        module = f"{distribution.replace('-', '_')}_plugin"
        manifest = f"""
            from torchquilt.plugins import Manifest, PresetInfo, hookimpl

            @hookimpl
            def torchquilt_manifest():
                return Manifest(
                    name="{name}",
                    api={api},
                    summary="what {name} does",
                    quantizer="{module}_class:Quantizer",
                    presets=(PresetInfo("small", "few bits"), PresetInfo("large", "many bits")),
                    targets=("device",),
                )
        """
        return self.install(
            distribution,
            f"[torchquilt]\n{name} = {module}\n",
            {module: source or manifest, f"{module}_class": cls},
        )
