"""The pages below docs/: their Python runs as it stands, and what they list is what there is."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import torchquilt as tq
from strategies import export, normal, outputs_of
from torchquilt.graph.passes import watching

_DOCS = Path(__file__).parents[2] / "docs"
_SETUP = re.compile(r"<!-- test: setup\n(.*?)-->", re.DOTALL)
_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
#: Shows files of an example.
_WALK = "writing-a-plugin.md"
#: Runs in test_readme.py.
_TOUR = "tour.md"
#: Pages whose code runs from top to bottom.
PAGES = sorted(
    page.name
    for page in _DOCS.glob("*.md")
    if page.name not in (_WALK, _TOUR) and _BLOCK.search(page.read_text(encoding="utf-8"))
)


def test_there_are_pages_with_code_that_runs() -> None:
    """The pages are found, so that the test below has something to run."""
    assert "the-flow.md" in PAGES


def _marked(page: str) -> Any:
    """A page as a parameter. Tutorials work on whole models, and compiling C++ takes long."""
    takes_long = page.startswith("tutorial-") or page == "inductor.md"
    return pytest.param(page, marks=pytest.mark.long) if takes_long else page


@pytest.mark.parametrize("page", map(_marked, PAGES))
def test_every_block_of_a_page_runs(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of a page runs from top to bottom in a clone, its assertions among it."""
    monkeypatch.chdir(_DOCS.parent)
    monkeypatch.setattr(sys, "path", [*sys.path])
    text = (_DOCS / page).read_text(encoding="utf-8")
    found: dict[str, object] = {}
    for number, block in enumerate([*_SETUP.findall(text), *_BLOCK.findall(text)]):
        exec(compile(block, f"{page}, block {number}", "exec"), found)


def _listed_passes() -> tuple[list[str], list[str]]:
    """The passes in the table of the flow, and in that of training."""
    text = (_DOCS / "the-flow.md").read_text(encoding="utf-8")
    flow, training = text.split("| step of training |")
    return tuple(re.findall(r"^\|[^|]*\| `(\w+)` \|", part, re.M) for part in (flow, training))


def _passes_of_calibration() -> list[str]:
    seen: list[str] = []
    with watching(lambda name, _: seen.append(name)):
        prepared = tq.prepare_pt2e(export(torch.nn.Linear(4, 4), normal(2, 4)), outputs_of("linear"))
        tq.convert_pt2e(tq.calibrate(prepared, [(normal(2, 4),)]))
    return seen


def test_the_passes_that_are_listed_are_those_that_run() -> None:
    """The table of passes names each pass of the flow, in order."""
    listed, _ = _listed_passes()
    assert listed == _passes_of_calibration()


def test_the_passes_of_training_that_are_listed_are_those_that_run() -> None:
    """The second table names those that training adds, in order."""
    seen: list[str] = []
    with watching(lambda name, _: seen.append(name)):
        prepared = tq.prepare_qat_pt2e(export(torch.nn.Linear(4, 4), normal(2, 4)), outputs_of("linear"))
        prepared(normal(2, 4))
        tq.convert_pt2e(prepared)
    for name in _passes_of_calibration():
        seen.reverse()
        seen.remove(name)  # its last run: training has a pass with a name of convert's
        seen.reverse()
    _, listed = _listed_passes()
    assert listed == seen
