"""The table at the end of a run: for each row of the backend, what was tested and what came out.

It is made from the reports of the tests, which also come from the workers of pytest-xdist.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from torchquilt._internal.text_tables import aligned
from torchquilt.support.table import SupportRow
from torchquilt.testing.subject import Subject, row_id

#: Name under which a test notes what its column shows.
PROPERTY = "torchquilt"

_COLUMNS = ("annotates", "converts", "SQNR", "trains", "refused", "limits", "composes")
_NOT_RUN = "-"
_FAILED = "FAILED"


@attrs.frozen
class Note:
    """Note of a test about a row.

    Args:
        row: the id of the row.
        column: the column that it belongs to.
        text: what the column shows where the test passes.
        passed: whether it did.
    """

    row: str
    column: str
    text: str
    passed: bool


def notes_of(reports: Iterable[Any]) -> list[Note]:
    """The notes in the reports of tests; those that are skipped or not about rows have none."""
    return [
        Note(row, column, text, bool(report.passed))
        for report in reports
        if getattr(report, "when", "") == "call" and not report.skipped
        for name, value in getattr(report, "user_properties", ())
        if name == PROPERTY
        for row, column, text in (value,)
    ]


def coverage_table(subject: Subject, reports: Iterable[Any], checked: frozenset[str]) -> str:
    """The table as text.

    Args:
        subject: the backend.
        reports: the reports of the run.
        checked: lowering targets that there is a checker for.
    """
    notes = notes_of(reports)
    header = ("row", *_COLUMNS, "lowering")
    lines = [
        (
            row_id(row),
            *(
                _cell([note for note in notes if (note.row, note.column) == (row_id(row), column)])
                for column in _COLUMNS
            ),
            _lowering(row, notes, checked),
        )
        for row in subject.rows
    ]
    return aligned([header, *lines])


def _cell(notes: list[Note]) -> str:
    if not notes:
        return _NOT_RUN
    if not all(note.passed for note in notes):
        return _FAILED
    return next((note.text for note in notes if note.text), "yes")


def _lowering(row: SupportRow, notes: list[Note], checked: frozenset[str]) -> str:
    """For each target that the row names, whether it lowers there, as far as a lowering is there."""
    found = []
    for target in row.targets:
        here = [note for note in notes if (note.row, note.column) == (row_id(row), f"lowers:{target}")]
        found.append(f"{target}: {_cell(here) if target in checked else 'not checked'}")
    return ", ".join(found) or "claims none"
