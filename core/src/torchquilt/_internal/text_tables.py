"""Tables of text, for a terminal and for a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TypeVar

import attrs

#: Said in each cell, since a style sheet would reach into the rest of the notebook.
_CELL = "text-align: left; vertical-align: top; padding: 2px 8px"


#: A listing shows so many lines unless all of them are asked for.
_MOST_LINES = 20

_T = TypeVar("_T")


class Listing(tuple[_T, ...]):
    """Values that print one a line. Its repr, which debuggers and consoles show unasked, is cut short."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "nothing"

    def __repr__(self) -> str:
        more = len(self) - _MOST_LINES
        lines = [*map(str, self[:_MOST_LINES]), *([f"… and {more:,} more"] if more > 0 else [])]
        return "\n".join(lines) or "nothing"


@attrs.frozen
class Printed:
    """A table with lines around it.

    Args:
        before: lines above the table.
        rows: the first one is the header; none where there is no table.
        after: lines below it.
    """

    before: Sequence[str]
    rows: Sequence[Sequence[str]]
    after: Sequence[str] = ()

    def __str__(self) -> str:
        return "\n".join([*self.before, *([aligned(self.rows)] if self.rows else []), *self.after])


def counted(number: int, noun: str) -> str:
    """``1 operator``, ``2 operators``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def few(names: Sequence[str], most: int, between: str = ", ") -> str:
    """The first names, and how many more there are: ``a, b, c and 4 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + more


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text in columns, a rule below the first row; the last column is not padded."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    rule = tuple("-" * width for width in (*widths, len(rows[0][-1])))
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in (rows[0], rule, *rows[1:])
    )


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a notebook. Every text is escaped, and nothing is loaded from anywhere."""
    return "\n".join(
        [
            "<table>",
            _html_row("th", header),
            *(_html_row("td", row) for row in rows),
            "</table>",
        ]
    )


def html_list(title: str, items: Sequence[str]) -> str:
    """A list below a title; empty where there is nothing in it."""
    lines = "\n".join(f"<li>{html.escape(item)}</li>" for item in items)
    return f"<p>{html.escape(title)}</p>\n<ul>\n{lines}\n</ul>" if items else ""


def html_folded(summary: str, inner: str) -> str:
    """Something long, which is shown once its summary is clicked.

    Args:
        summary: a text.
        inner: HTML.
    """
    return f"<details><summary>{html.escape(summary)}</summary>\n{inner}\n</details>"


def _html_row(tag: str, cells: Iterable[str]) -> str:
    # A cell of several lines keeps them.
    texts = (html.escape(cell).replace("\n", "<br>") for cell in cells)
    return "<tr>" + "".join(f'<{tag} style="{_CELL}">{text}</{tag}>' for text in texts) + "</tr>"
