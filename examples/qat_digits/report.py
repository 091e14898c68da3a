"""The table: what the seeds have in common, and how far they lie apart."""

from __future__ import annotations

from statistics import mean

import attrs

from variants import Figures

COLUMNS = ("model", "accuracy %", "from – to", "recovered", "file KB", "seconds")
FLOAT, LOSES = "float", "PTQ, 4 bits"


@attrs.frozen
class Row:
    """One line: the figures of a variant over all seeds.

    Args:
        name: of the variant.
        accuracy: mean over the seeds.
        lowest, highest: of the seeds.
        recovered: which share of what PTQ loses at 4 bits it wins back; None for what is not of 4 bits, and
            where PTQ loses nothing.
        kilobytes, seconds: means.
    """

    name: str
    accuracy: float
    lowest: float
    highest: float
    recovered: float | None
    kilobytes: float
    seconds: float


def rows_of(runs: list[list[Figures]]) -> list[Row]:
    """The lines of the table, from the figures of each seed."""
    by_name = {figures[0].name: figures for figures in zip(*runs, strict=True)}
    means = {name: mean(one.accuracy for one in figures) for name, figures in by_name.items()}
    lost = means[FLOAT] - means[LOSES]
    rows = []
    for name, figures in by_name.items():
        accuracies = [one.accuracy for one in figures]
        is_trained = name.startswith("QAT") and lost > 0
        rows.append(
            Row(
                name,
                means[name],
                min(accuracies),
                max(accuracies),
                (means[name] - means[LOSES]) / lost if is_trained else None,
                mean(one.kilobytes for one in figures),
                mean(one.seconds for one in figures),
            )
        )
    return rows


def print_table(rows: list[Row]) -> None:
    """Print the table in the form that Markdown reads, too."""
    cells = [COLUMNS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for number, line in enumerate(cells):
        first, *others = zip(line, widths, strict=True)
        print("|", first[0].ljust(first[1]), *(f"| {cell.rjust(width)}" for cell, width in others), "|")
        if number == 0:
            print(
                "|"
                + "|".join([":" + "-" * (widths[0] + 1), *("-" * (w + 1) + ":" for w in widths[1:])])
                + "|"
            )


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.accuracy:.2f}",
        f"{row.lowest:.2f} – {row.highest:.2f}",
        "–" if row.recovered is None else f"{row.recovered:.0%}",
        f"{row.kilobytes:.0f}",
        f"{row.seconds:.1f}",
    )
