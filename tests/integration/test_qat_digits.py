"""The example of training, as its user meets it: a command with a printed table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

#: They take long: `make test-long` runs them.
pytestmark = pytest.mark.long

SCRIPT = Path(__file__).parents[2] / "examples/qat_digits/qat_digits.py"
NAMES = [
    "float",
    "float, trained on",
    "PTQ, 8 bits",
    "PTQ, 4 bits",
    "QAT, 4 bits",
    "QAT, 4 bits, learned ranges",
]


def run(figures: Path, *arguments: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """Output of the script, and its figures by the names of the models."""
    command = [sys.executable, str(SCRIPT), "--json", str(figures), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, {row["name"]: row for row in json.loads(figures.read_text())}


def test_prints_one_table_with_a_row_for_each_model(tmp_path: Path) -> None:
    """The table has six rows and a cell for each column, and what was converted is what was trained."""
    printed, figures = run(tmp_path / "figures.json", "--seeds", "1", "--epochs", "1", "--qat-epochs", "1")
    table = [line.strip("|").split("|") for line in printed.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line] for line in table]
    assert header == ["model", "accuracy %", "from – to", "recovered", "file KB", "seconds"]
    assert [row[0] for row in rows] == NAMES
    assert {len(row) for row in rows} == {len(header)}
    assert "give the same bits on the whole test set" in printed
    assert list(figures) == NAMES
    assert all(row["kilobytes"] < figures["float"]["kilobytes"] for row in [*figures.values()][2:])


def test_4_bits_lose_and_training_recovers(tmp_path: Path) -> None:
    """With one seed: calibration alone costs three points at 4 bits and nothing at 8; training recovers them.

    Over three seeds 86 and 97 % are recovered. A single seed differs by some points; see the spread in the
    README of the example.
    """
    _, figures = run(tmp_path / "figures.json", "--seeds", "1")
    accuracy = {name: row["accuracy"] for name, row in figures.items()}
    assert accuracy["PTQ, 8 bits"] > accuracy["float"] - 1
    assert accuracy["PTQ, 4 bits"] < accuracy["float"] - 3
    assert figures["QAT, 4 bits"]["recovered"] > 0.6
    assert figures["QAT, 4 bits, learned ranges"]["recovered"] > 0.8
