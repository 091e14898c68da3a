"""Releases: one version, metadata that say the same, and a script that refuses what is not ready."""

from __future__ import annotations

import datetime
import importlib.metadata
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tomlkit
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import preparation
from projects import ROOT, core_bounds, projects, version

DATE = datetime.date(2027, 1, 2)
PROJECTS = {path.name: path for path in projects()}
MAKE_TARGETS = set(re.findall(r"^([a-z0-9.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def metadata(project: Path) -> dict[str, object]:
    """The table ``project`` of a pyproject."""
    found: dict[str, object] = tomlkit.parse((project / "pyproject.toml").read_text()).unwrap()["project"]
    return found


# --- What stands in the projects ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROJECTS)
def test_the_metadata_of_all_distributions_say_the_same(name: str) -> None:
    """Version from the file VERSION, licence, classifiers, addresses; a README and a licence beside it."""
    own, core = metadata(PROJECTS[name]), metadata(ROOT / "core")
    assert own["dynamic"] == ["version"]
    for key in ("license", "urls", "requires-python", "classifiers", "authors"):
        assert own[key] == core[key], key
    assert own["readme"] == "README.md"
    assert (PROJECTS[name] / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert (PROJECTS[name] / "README.md").is_file()


def test_torch_is_bounded_by_what_was_tried() -> None:
    """The version of constraints.txt and that of test-torch-2.14 are allowed, the next one is not."""
    needed = [Requirement(one) for one in metadata(ROOT / "core")["dependencies"]]  # type: ignore[attr-defined]
    (torch,) = [one for one in needed if one.name == "torch"]
    pinned = re.findall(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    tried = [*pinned, *re.findall(r"torch==(\d[\d.]+)", (ROOT / "Makefile").read_text())]
    assert len(tried) == 2
    assert all(torch.specifier.contains(one) for one in tried)
    newest = max(map(Version, tried))
    assert not torch.specifier.contains(f"{newest.major}.{newest.minor + 1}.0")


def test_pins_without_a_marker_have_a_release_for_the_oldest_python() -> None:
    """A pin of another one leaves pip without any version; read from what is installed here."""
    (oldest,) = re.findall(r">=(3\.\d+)", str(metadata(ROOT / "core")["requires-python"]))
    pins = [Requirement(line) for line in _lines(ROOT / "constraints.txt")]
    needed = {pin.name: _python_of(pin) for pin in pins if pin.marker is None}
    assert sum(found is not None for found in needed.values()) > 50
    assert [name for name, found in needed.items() if found and oldest not in SpecifierSet(found)] == []


def _lines(path: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def _python_of(pin: Requirement) -> str | None:
    """The Python that a pinned distribution needs, None where this version of it is not installed."""
    try:
        found = importlib.metadata.metadata(pin.name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return found.get("Requires-Python") if found["Version"] in pin.specifier else None


@pytest.mark.parametrize("workflow", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda p: p.stem)
def test_workflows_run_make_targets_that_there_are(workflow: Path) -> None:
    """Each of its steps can be run on any machine."""
    called = re.findall(r"run: make ([a-z0-9.-]+)", workflow.read_text())
    assert called
    assert [target for target in called if target not in MAKE_TARGETS] == []


@pytest.mark.parametrize(
    ("of", "bounds"), [("0.1.0", ">=0.1,<0.2"), ("0.9.3", ">=0.9,<0.10"), ("1.2.0", ">=1.2,<2")]
)
def test_bounds_follow_the_version(of: str, bounds: str) -> None:
    """From 1.0 on a minor version only adds."""
    assert core_bounds(of) == bounds


# --- The script ---------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of its own with the files that a release touches."""
    for file in (
        "VERSION",
        "CHANGELOG.md",
        *(f"{path.relative_to(ROOT)}/pyproject.toml" for path in projects()),
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "config", "user.email", "t@example.org")
    git(tmp_path, "config", "user.name", "t")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    return tmp_path


def git(root: Path, *arguments: str) -> str:
    """Output of a git command."""
    return subprocess.run(
        ["git", "-C", root, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_release_is_one_commit_with_the_version_everywhere(repository: Path) -> None:
    """VERSION, the bounds of each plugin, the changelog, and a tag; the tree is clean afterwards."""
    assert preparation.main(["99.1.0", "--root", str(repository), "--date", str(DATE)]) == 0
    assert version(repository) == "99.1.0"
    for project in projects(repository)[1:]:
        assert '"torchquilt>=99.1,<100"' in (project / "pyproject.toml").read_text()
    text = (repository / "CHANGELOG.md").read_text()
    assert "## [Unreleased]\n\n## [99.1.0] - 2027-01-02\n\n### Added" in text
    assert git(repository, "tag", "--points-at", "HEAD") == "v99.1.0"
    assert git(repository, "log", "--format=%s").splitlines() == ["Release 99.1.0", "first"]
    assert git(repository, "status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("0.0.1", "does not come after"),
        (version(), "does not come after"),
        ("next", "is no version"),
        ("99.01", "is written 99.1"),
        ("99.1.0+local", "is written"),
    ],
)
def test_a_version_that_cannot_be_released_is_refused(
    repository: Path, asked: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing is changed."""
    assert preparation.main([asked, "--root", str(repository)]) == 1
    assert reason in capsys.readouterr().err
    assert git(repository, "status", "--porcelain") == ""
    assert git(repository, "tag") == ""


def test_a_dirty_tree_is_refused(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files that are not committed are named, new ones too."""
    (repository / "stray.py").write_text("")
    assert preparation.main(["99.1.0", "--root", str(repository)]) == 1
    assert "stray.py" in capsys.readouterr().err
    assert git(repository, "tag") == ""


def test_a_changelog_without_news_is_refused(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After a release there has to be something new."""
    assert preparation.main(["99.1.0", "--root", str(repository)]) == 0
    assert preparation.main(["99.2.0", "--root", str(repository)]) == 1
    assert "nothing under Unreleased" in capsys.readouterr().err
    assert git(repository, "status", "--porcelain") == ""


def test_a_tag_that_is_there_is_refused(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where its release is not what is checked out."""
    git(repository, "tag", "v99.1.0")
    assert preparation.main(["99.1.0", "--root", str(repository)]) == 1
    assert "is there already" in capsys.readouterr().err
