"""The pages below docs/: their Python runs as it stands, and what they list is what there is."""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import torchquilt as tq
from documented import check_blocks
from generated_tables import MARKER
from page_blocks import blocks_of, is_printed, notebook_of, pages_with_code, run, script_of
from strategies import export, normal, outputs_of
from torchquilt.graph.passes import watching

_DOCS = Path(__file__).parents[2] / "docs"
#: Runs in test_readme.py.
_TOUR = "tour.md"
#: Pages whose code runs from top to bottom.
PAGES = sorted(page.relative_to(_DOCS).as_posix() for page in pages_with_code(_DOCS) if page.name != _TOUR)
#: Pages that work on whole models, or compile C++.
_LONG = ("inductor.md", "lowering.md")


def test_there_are_pages_with_code_that_runs() -> None:
    """The pages are found, so that the test below has something to run."""
    assert {"the-flow.md", "index.md", "tutorials/first-model.md"} <= set(PAGES)


def _marked(page: str) -> Any:
    """A page as a parameter."""
    return pytest.param(page, marks=pytest.mark.long) if page.startswith(_LONG) else page


@pytest.mark.parametrize("page", [_marked(page) for page in PAGES if not page.startswith("tutorials/")])
def test_every_block_of_a_page_runs(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The code of a page runs from top to bottom, and prints what the page says that it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    check_blocks(_DOCS / page)


@pytest.mark.parametrize("page", [*PAGES, _TOUR])
def test_nothing_that_a_page_needs_is_hidden(page: str) -> None:
    """A comment of HTML names text that is generated, and has no code that a reader does not see."""
    text = (_DOCS / page).read_text(encoding="utf-8")
    assert set(re.findall(r"<!--.*?-->", text, re.DOTALL)) <= {found[0] for found in MARKER.finditer(text)}


@pytest.mark.parametrize("page", [*PAGES, _TOUR])
def test_the_notebook_and_the_script_of_a_page_have_its_code(page: str) -> None:
    """Both have each block as it stands, in order; the notebook is valid and shows what the page shows."""
    text = (_DOCS / page).read_text(encoding="utf-8")
    blocks = blocks_of(text)
    cells = [cell for cell in json.loads(notebook_of(text))["cells"] if cell["cell_type"] == "code"]
    assert ["".join(cell["source"]) for cell in cells] == [block.code.rstrip() for block in blocks]
    assert ["".join(out["text"]) for cell in cells for out in cell["outputs"]] == [
        block.output for block in blocks if block.output
    ]
    script = script_of(text)
    compile(script, page, "exec")
    positions = [script.find(block.code.rstrip()) for block in blocks]
    assert -1 not in positions
    assert positions == sorted(positions)


@pytest.mark.parametrize("page", [*PAGES, _TOUR])
def test_what_a_block_prints_is_compared(page: str) -> None:
    """The output of a block has the language ``output``; one that is `text` goes stale unseen."""
    text = (_DOCS / page).read_text(encoding="utf-8")
    fences = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    uncompared = [
        shown[2]
        for code, shown in itertools.pairwise(fences)
        if (code[1], shown[1]) == ("python", "text")
        and "print(" in code[2]
        and "\n#" not in text[code.end() : shown.start()]
    ]
    assert uncompared == []


def test_another_output_than_that_of_the_page_is_seen() -> None:
    """The output of a block is compared with that of its page; three dots stand for anything."""
    page = "```python\nprint(1 + 1)\n```\n\n```output\n{}\n```\n"
    for told, is_right in (("2", True), ("3", False), ("...", True), ("2.1", False)):
        ((block, printed),) = run(page.format(told), "a page")
        assert is_printed(str(block.output), printed) == is_right


@pytest.mark.parametrize(
    ("told", "printed", "is_right"),
    [
        ("34.3 dB", "33.9 dB", True),
        ("34.3 dB", "12.0 dB", False),
        ("34.3 dB", "34.3 steps", False),
        ("7 images", "8 images", False),
        ("0.5, 0.25", "0.5, 0.26", True),
        ("0.5, 0.25", "0.5, 0.5", False),
        ("0.5 dB", "0.6 dB", True),
        ("0.5 dB", "0.7 dB", False),
    ],
)
def test_decimals_may_differ_by_a_quarter(told: str, printed: str, is_right: bool) -> None:
    """Another processor rounds otherwise; words and whole numbers are the same everywhere."""
    assert is_printed(told, printed) == is_right


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
