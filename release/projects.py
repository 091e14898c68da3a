"""The distributions of this repository. All have one version, that of the file VERSION."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION_FILE = ROOT / "VERSION"


def projects(root: Path = ROOT) -> list[Path]:
    """Folders of the distributions, the core first."""
    return [root / "core", *sorted(path.parent for path in root.glob("plugins/*/pyproject.toml"))]


def version(root: Path = ROOT) -> str:
    """The version of all of them."""
    return (root / VERSION_FILE.name).read_text(encoding="utf-8").strip()


def core_bounds(of: str) -> str:
    """Versions of the core that a plugin of this version works with: before 1.0 a minor version may break."""
    major, minor = (int(part) for part in of.split(".")[:2])
    return f">={major}.{minor},<{major}.{minor + 1}" if major == 0 else f">={major}.{minor},<{major + 1}"
