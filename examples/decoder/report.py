"""The table of the example, and its figures as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import attrs

HEADER = ("model", "perplexity", "added", "÷ nearest", "file KB")


@attrs.frozen
class Row:
    """One model.

    Args:
        name: of it.
        perplexity: on the test set.
        added: how much more that is than the float model's.
        ratio: of what is added to what rounding to the nearest adds; None for others.
        file: size of the saved model in bytes.
    """

    name: str
    perplexity: float
    added: float
    ratio: float | None
    file: int

    def cells(self) -> tuple[str, ...]:
        """Texts of the table."""
        return (
            self.name,
            f"{self.perplexity:.3f}",
            f"{self.added:+.3f}" if self.added else "–",
            "–" if self.ratio is None else f"{self.ratio:.2f}",
            f"{self.file / 1e3:,.0f}",
        )


def print_table(rows: Iterable[Row]) -> None:
    """Print the rows in Markdown."""
    cells = [HEADER, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for number, line in enumerate(cells):
        first, *others = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        aligned = (cell.strip().rjust(len(cell)) for cell in others)
        print(f"| {' | '.join([first, *aligned])} |")
        if number == 0:
            print(
                "|:"
                + "-" * widths[0]
                + "-|"
                + "|".join("-" * (width + 1) + ":" for width in widths[1:])
                + "|"
            )


def write_json(path: Path, rows: Iterable[Row], program: int, text: str) -> None:
    """Write the unrounded figures, the size of the program in bytes, and what it wrote."""
    content = {"models": [attrs.asdict(row) for row in rows], "program": program, "text": text}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
