"""The kit's plugin for pytest is loaded where the kit is asked for, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchquilt._internal.pytest_entry import is_asked_for

ROOT = Path(__file__).parents[2]
ENTRY = "torchquilt._internal.pytest_entry"
UNRELATED = """
import sys

def test_what_is_imported():
    found = {name for name in sys.modules if name.startswith("torchquilt")}
    assert "torchquilt._internal.pytest_entry" in found  # the entry point was loaded
    assert not {name for name in found if name.startswith("torchquilt.testing")}
    assert "torch" not in sys.modules
"""


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Pytest with the entry point and no other plugin, as where nothing else is installed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-m", "pytest", "-p", ENTRY, "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_the_entry_point_is_what_is_installed() -> None:
    """The package names this module to pytest, and no other."""
    text = (ROOT / "core/pyproject.toml").read_text()
    (lines,) = (part.split("\n\n")[0] for part in text.split("[project.entry-points.pytest11]\n")[1:])
    assert lines == f'torchquilt = "{ENTRY}"'


def test_an_unrelated_project_does_not_load_the_kit(tmp_path: Path) -> None:
    """Its run of pytest imports nothing of torchquilt.testing, and no torch."""
    (tmp_path / "test_unrelated.py").write_text(UNRELATED)
    done = run_pytest(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_the_command_of_the_kit_is_one_line(tmp_path: Path) -> None:
    """Its options are known without any other argument; help lists them."""
    done = run_pytest(tmp_path, "--pyargs", "torchquilt.testing", "--help")
    assert "--torchquilt-backend=NAME" in done.stdout, done.stderr
    done = run_pytest(tmp_path, "--pyargs", "torchquilt.testing")
    assert "Say what to test: --torchquilt-backend=NAME" in done.stdout + done.stderr
    done = run_pytest(tmp_path, "--pyargs", "torchquilt.testing", "--torchquilt-backend=nothing_like_it")
    assert "No installed backend is called 'nothing_like_it'" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["--pyargs", "torchquilt.testing"],
        ["--pyargs", "torchquilt.testing.test_rows"],
        ["core/src/torchquilt/testing/test_rows.py::test_it"],
        ["-q", "--torchquilt-backend=acme"],
        ["--torchquilt-backend", "acme"],
    ],
    ids=" ".join,
)
def test_what_asks_for_the_kit(args: list[str]) -> None:
    """Its package, a file of it, an option of it."""
    assert is_asked_for(args)


@pytest.mark.parametrize(
    "args", [[], ["tests"], ["-k", "torchquilt"], ["tests/torchquilt/test_it.py"]], ids=" ".join
)
def test_what_does_not(args: list[str]) -> None:
    """Anything else, also of a project that uses torchquilt."""
    assert not is_asked_for(args)
