"""Codes stand in one module; what the docs say of them is the same."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from torchquilt.reasons import CAUTIONS, LOWERING_STATUSES, REASONS, rank_of, reason_of

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def listed(page: str) -> dict[str, list[str]]:
    """Code → the other cells of its row, for the tables of a page whose first cells are codes."""
    rows = re.findall(
        r"^\| `([a-z_]+(?::<\w+>)?)` \| (.*) \|$", (DOCS / page).read_text(encoding="utf-8"), re.M
    )
    return {code: cells.split(" | ") for code, cells in rows}


def test_the_docs_list_each_lowering_status() -> None:
    """The page about lowering has each status with its meaning."""
    told = listed("lowering.md")
    assert {status.code: told.get(status.code) for status in LOWERING_STATUSES} == {
        status.code: [status.meaning] for status in LOWERING_STATUSES
    }


def test_the_docs_list_each_caution() -> None:
    """The page about calibration has each warning of a range."""
    assert {caution.code for caution in CAUTIONS} <= set(listed("calibration.md"))


@pytest.mark.parametrize("kind", ["Reject", "Reason"])
def test_no_code_is_used_that_is_not_listed(kind: str) -> None:
    """Each code that the core writes has an entry with a meaning and a remedy."""
    position = {"Reject": 0, "Reason": 1}[kind]
    used = {
        node.args[position].value
        for path in (ROOT / "core/src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == kind
        and len(node.args) > position
        and isinstance(node.args[position], ast.Constant)
    }
    # Rules of the reference representation reject sites with a code of their own, which no ledger shows.
    known = {reason.code for reason in REASONS}
    assert {code for code in used if ":" not in code} - known - OF_THE_REFERENCE == set()


OF_THE_REFERENCE: frozenset[str] = frozenset(
    node.args[0].value
    for path in (ROOT / "core/src/torchquilt/pt2e/reference").glob("*.py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.Call)
    and isinstance(node.func, ast.Name)
    and node.func.id == "Reject"
    and isinstance(node.args[0], ast.Constant)
)


def test_a_code_of_a_plugin_is_the_most_telling() -> None:
    """A code of a plugin's own is more particular than any reason of the core."""
    assert reason_of("acme_is_full") is None
    assert rank_of("acme_is_full") > max(
        rank_of(reason.code) for reason in REASONS if reason.rank is not None
    )
    assert reason_of("claimed_by:mine") is reason_of("claimed_by")
