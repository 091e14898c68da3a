"""Every folder below plugins/ has the same shape, and the names in it agree."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

from projects import core_bounds, version
from torchquilt.lowering import Contribution
from torchquilt.plugins import API, Manifest, registry
from torchquilt.spec.config import QuantizationConfig

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
FILES = {"__init__.py", "plugin.py", "py.typed"}
OF_BACKENDS = {"specs.py", "support.py", "quantizer.py"}
OF_TARGETS = {"target.py"}


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def folder(request: pytest.FixtureRequest) -> Path:
    """One of the folders below plugins/."""
    found: Path = request.param
    return found


@pytest.fixture
def project(folder: Path) -> dict[str, Any]:
    """The ``[project]`` table of the plugin."""
    table: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return table


def manifest_of(folder: Path) -> Manifest:
    """Manifest of the plugin of a folder."""
    made: Manifest = importlib.import_module(f"torchquilt_{folder.name}.plugin").torchquilt_manifest()
    return made


@pytest.fixture
def manifest(folder: Path) -> Manifest:
    """Manifest of the plugin."""
    return manifest_of(folder)


def named_by(reference: str) -> Any:
    """The object that a manifest names as text."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


BACKENDS = [folder for folder in FOLDERS if manifest_of(folder).quantizer is not None]
TARGETS = [folder for folder in FOLDERS if manifest_of(folder).target is not None]


@pytest.fixture(params=BACKENDS, ids=lambda folder: folder.name)
def backend(request: pytest.FixtureRequest) -> Manifest:
    """The manifest of a plugin that quantizes."""
    return manifest_of(request.param)


@pytest.fixture
def quantizer_class(backend: Manifest) -> Any:
    """The class that the manifest names."""
    assert backend.quantizer is not None
    return named_by(backend.quantizer)


def test_no_folder_lacks_its_pyproject() -> None:
    """Each folder below plugins/ is a distribution, so that none escapes the tests of this file."""
    below = {path for path in (ROOT / "plugins").iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert below == set(FOLDERS)


def test_a_plugin_has_the_files_that_all_have(folder: Path, manifest: Manifest) -> None:
    """There is a README, and one package of the folder's name with the files that its kind has."""
    assert (folder / "README.md").is_file()
    packages = [path for path in (folder / "src").iterdir() if path.is_dir()]
    assert [path.name for path in packages] == [f"torchquilt_{folder.name}"]
    files = (
        FILES | (OF_BACKENDS if manifest.quantizer else set()) | (OF_TARGETS if manifest.target else set())
    )
    missing = files - {path.name for path in packages[0].iterdir()}
    assert not missing


def test_the_names_of_a_plugin_agree(folder: Path, project: dict[str, Any], manifest: Manifest) -> None:
    """Folder, distribution, package, entry point and manifest all say one name."""
    assert project["name"] == f"torchquilt-{folder.name.replace('_', '-')}"
    assert project["entry-points"] == {"torchquilt": {folder.name: f"torchquilt_{folder.name}.plugin"}}
    assert manifest.name == folder.name
    named = ((manifest.quantizer, "quantizer"), (manifest.target, "target"))
    for path, module in named:
        assert path is None or path.startswith(f"torchquilt_{folder.name}.{module}:")
    for path in manifest.contributions.values():
        assert path == f"torchquilt_{folder.name}.lowering:CONTRIBUTION"


def test_a_plugin_is_made_for_this_core(project: dict[str, Any], manifest: Manifest) -> None:
    """It depends on a core of its own version, whose plugin interface it speaks."""
    assert f"torchquilt{core_bounds(version())}" in project["dependencies"]
    assert manifest.api == API


def test_a_published_plugin_is_known_before_it_is_installed(folder: Path, project: dict[str, Any]) -> None:
    """The core can answer a request for it with the pip line."""
    kind = "target" if folder in TARGETS else "backend" if folder in BACKENDS else "bridge"
    known = {(known.name, known.distribution, known.kind) for known in registry.KNOWN}
    assert (folder.name, project["name"], kind) in known


def test_the_readme_says_how_to_install_it(folder: Path, project: dict[str, Any]) -> None:
    """The README has the pip line with the name of the distribution."""
    assert f"pip install {project['name']}\n" in (folder / "README.md").read_text()


def test_the_presets_are_those_of_the_class(backend: Manifest, quantizer_class: Any) -> None:
    """The manifest, which imports no torch, lists the presets of the class in the same order."""
    assert backend.preset_names == tuple(quantizer_class.PRESETS)


def test_every_preset_makes_a_quantizer(backend: Manifest, quantizer_class: Any) -> None:
    """Each preset is a config that the class can be made from."""
    for name in backend.preset_names:
        assert isinstance(quantizer_class.PRESETS[name](), QuantizationConfig)
        assert isinstance(quantizer_class.from_preset(name), quantizer_class)


def test_the_class_can_be_made_without_arguments(quantizer_class: Any) -> None:
    """Without a preset a quantizer is made by calling its class."""
    inspect.signature(quantizer_class).bind()


def test_a_backend_says_how_it_is_lowered(backend: Manifest) -> None:
    """For each target that it claims and that is among these plugins, it gives a contribution."""
    ours = {manifest_of(folder).name for folder in TARGETS}
    assert set(backend.contributions) == ours & set(backend.targets)
    for path in backend.contributions.values():
        assert isinstance(named_by(path), Contribution)


@pytest.mark.parametrize("folder", TARGETS, ids=lambda folder: folder.name)
def test_a_target_can_be_made_without_arguments(folder: Path) -> None:
    """Its class has what the core calls, and needs nothing to be made."""
    path = manifest_of(folder).target
    assert path is not None
    made = named_by(path)()
    assert callable(made.lower)
    assert callable(made.open)
