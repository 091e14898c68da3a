"""Output: tables on a terminal, plain text in a pipe, JSON on request.

A terminal gets what rich makes of it, in colors unless ``NO_COLOR`` is set. Whatever is no terminal gets the
same words without a control character in them. A reader that stops reading is no error: the rest is written
to nowhere, and the command goes on.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from torchquilt._internal.terminal import console, is_terminal
from torchquilt._internal.text_tables import Printed, aligned

#: Rows of cells, the first one the header.
Rows = Sequence[Sequence[str]]


def write(text: str) -> None:
    """Write lines to standard output."""
    _write(sys.stdout, plain(text) + "\n")


def write_error(text: str) -> None:
    """Write lines to standard error."""
    _write(sys.stderr, plain(text) + "\n")


def write_json(value: object) -> None:
    """Write a value as JSON to standard output."""
    _write(sys.stdout, json.dumps(value, indent=1) + "\n")


def write_table(rows: Rows, title: str = "") -> None:
    """Write a table to standard output."""
    if is_terminal(sys.stdout):
        _write(sys.stdout, _rich_table(rows, title))
    else:
        text = aligned([tuple(map(plain, row)) for row in rows])
        heading = ["", f"{plain(title)}:"] if title else []
        lines = [*heading, *(line.rstrip() for line in text.split("\n")), ""]
        _write(sys.stdout, "\n".join(lines))


def write_printed(printed: Printed) -> None:
    """Write a table with the lines around it to standard output."""
    if not is_terminal(sys.stdout):
        write(str(printed))
        return
    if printed.before:
        write("\n".join(printed.before))
    if printed.rows:
        write_table(printed.rows)
    if printed.after:
        write("\n".join(printed.after))


def plain(text: str) -> str:
    """The text with control characters spelled out: names in a file could contain orders to the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or c.isprintable() else ascii(c)[1:-1] for c in text)


def _write(stream: TextIO | None, text: str) -> None:
    if stream is None:  # the shell closed it: `>&-`
        return
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _rich_table(rows: Rows, title: str) -> str:
    """The table as text for the terminal that standard output is. Cells are text, and no markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    header, *others = rows
    terminal = console(io.StringIO())
    widths = _longest_words(rows)
    are_kept_whole = sum(widths) + 3 * len(widths) + 1 <= terminal.width
    has_lines = (sys.stdout.encoding or "").lower().startswith("utf")
    table = Table(box=box.SIMPLE_HEAD if has_lines else box.ASCII2, title_justify="left")
    table.title = Text(plain(title), style="bold") if title else None
    for name, width in zip(header, widths, strict=True):
        table.add_column(Text(plain(name)), overflow="fold", min_width=width if are_kept_whole else None)
    for row in others:
        table.add_row(*(Text(plain(cell)) for cell in row))
    terminal.print(table)
    return "".join(f"{line.rstrip()}\n" for line in terminal.file.getvalue().splitlines())


def _longest_words(rows: Rows) -> list[int]:
    """For each column the characters of its longest word: what is to be copied should not be broken."""
    columns = zip(*rows, strict=True)
    return [
        max((len(word) for cell in column for word in plain(cell).split()), default=0) for column in columns
    ]
