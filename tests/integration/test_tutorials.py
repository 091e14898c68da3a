"""The tutorials of the site: their Python runs as it stands, and prints what they show."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from documented import check_blocks
from page_blocks import blocks_of

#: They work on whole models: `make test-long` runs them.
pytestmark = pytest.mark.long

TUTORIALS = sorted((Path(__file__).parents[2] / "docs/tutorials").glob("*.md"))


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs_and_prints_what_it_shows(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In an empty folder, from its first block to its last, with nothing of a clone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    check_blocks(page)


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_shows_what_comes_out(page: Path) -> None:
    """It says what to install, and what most of its blocks print."""
    text = page.read_text(encoding="utf-8")
    blocks = blocks_of(text)
    assert "pip install" in text
    assert sum(block.output is not None for block in blocks) >= len(blocks) / 2
