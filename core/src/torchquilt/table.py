"""Tables of text, for a terminal and for a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

#: Said in each cell, since a style sheet would reach into the rest of the notebook.
_CELL = "text-align: left; vertical-align: top; padding: 2px 8px"


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
