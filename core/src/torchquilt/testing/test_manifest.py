"""Requirements on manifests: mandatory for every installed backend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from torchquilt.plugins.manifest import Manifest
from torchquilt.plugins.registry import ALLOW_VARIABLE, Backend
from torchquilt.testing.subject import Subject

# What a listing does, in an interpreter that has not seen torch.
_LIST = """
import json, sys
before = "torch" in sys.modules
import torchquilt
(record,) = [backend for backend in torchquilt.backends() if backend.name == sys.argv[1]]
print(json.dumps({
    "status": record.status, "stage": record.stage, "error": record.error,
    "torch_before": before, "torch": "torch" in sys.modules,
}))
"""


@pytest.fixture(scope="module")
def backend(subject: Subject) -> Backend:
    """The record of the installed backend."""
    if subject.backend is None:
        pytest.skip("a class was named, so there is no manifest to test")
    return subject.backend


@pytest.fixture(scope="module")
def manifest(backend: Backend) -> Manifest:
    """The manifest under test."""
    assert backend.manifest is not None
    return backend.manifest


@pytest.fixture(scope="module")
def listed(backend: Backend) -> dict[str, Any]:
    """Listing of a fresh interpreter, with no other plugin allowed."""
    done = subprocess.run(
        [sys.executable, "-c", _LIST, backend.name],
        env={**os.environ, ALLOW_VARIABLE: backend.name},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_manifest_is_valid(listed: dict[str, Any]) -> None:
    """A listing in a fresh interpreter gets a manifest that this core understands."""
    assert listed["status"] == "ok", f"{listed['stage']}: {listed['error']}"


def test_the_manifest_imports_no_torch(listed: dict[str, Any]) -> None:
    """A listing imports the plugin module and is to be answered at once, so that may not load torch."""
    if listed["torch_before"]:
        pytest.skip("this interpreter starts with torch loaded")
    assert not listed["torch"], (
        "Listing this backend loads torch. The module of the entry point, and the packages that it lies in, "
        "must not import it; name the class as text in the manifest."
    )


def test_the_manifest_names_the_presets_of_the_class(subject: Subject, manifest: Manifest) -> None:
    """The presets that a listing shows are those that the class has, in the same order."""
    assert manifest.preset_names == tuple(subject.cls.PRESETS)


def test_the_manifest_names_the_targets_of_the_table(subject: Subject, manifest: Manifest) -> None:
    """The lowering targets that a listing shows are those of the rows."""
    assert set(manifest.targets) == {target for row in subject.rows for target in row.targets}


def test_the_table_has_the_name_of_the_backend(subject: Subject, manifest: Manifest) -> None:
    """Capabilities are shown under the name that the user asked for."""
    assert subject.table.backend == manifest.name
