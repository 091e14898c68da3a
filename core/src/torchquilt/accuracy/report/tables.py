"""The tables of a report as plain data: the page draws them, filters them and sorts them."""

from __future__ import annotations

from typing import Any

import attrs

from torchquilt.accuracy.report.measurements import Comparison, Search, Sensitivities
from torchquilt.accuracy.report.plain import plain_number
from torchquilt.ledger.ledger import Ledger
from torchquilt.support.capabilities import Capabilities
from torchquilt.support.capability_row import NONE


@attrs.frozen
class Column:
    """A column of a table.

    Args:
        label: its heading.
        kind: ``text``, ``number`` or ``node``: the name of an operator, which leads to it.
        has_choices: whether a list of its values filters the table.
        unit: stands behind a number.
    """

    label: str
    kind: str = "text"
    has_choices: bool = False
    unit: str = ""


def table(columns: tuple[Column, ...], rows: list[list[Any]]) -> dict[str, Any]:
    """A table as plain data."""
    return {"columns": [attrs.asdict(column) for column in columns], "rows": rows}


def capability_table(capabilities: Capabilities | None) -> dict[str, Any] | None:
    """Rows of support, in the order in which they are tried."""
    if capabilities is None:
        return None
    columns = (
        Column("backend", has_choices=True),
        Column("pattern", has_choices=True),
        Column("mode", has_choices=True),
        Column("integers on"),
        Column("specs"),
        Column("only if"),
        Column("presets"),
    )
    rows = [
        [
            row.backend,
            row.pattern,
            row.mode,
            ", ".join(row.targets) or NONE,
            row.spec_text("\n"),
            "\n".join(text for _, text in row.constraints),
            ", ".join(row.presets),
        ]
        for row in capabilities
    ]
    return table(columns, rows)


def sensitivity_table(sensitivities: Sensitivities | None) -> dict[str, Any] | None:
    """Groups of operators, the most costly first, as the sensitivities have them."""
    if sensitivities is None or not sensitivities.groups:
        return None
    is_exact = any(group.alone is not None or group.left_out is not None for group in sensitivities.groups)
    columns = (
        Column("group"),
        Column("first operator", "node"),
        Column("operators", "number"),
        Column("estimated SQNR of the outputs", "number", unit="dB"),
        *((Column("metric alone", "number"), Column("metric left in float", "number")) if is_exact else ()),
        Column("multiply-adds", "number"),
        Column("quantizer", has_choices=True),
    )
    rows = [
        [
            group.name,
            group.nodes[0] if group.nodes else "",
            len(group.nodes),
            plain_number(group.sqnr),
            *((plain_number(group.alone), plain_number(group.left_out)) if is_exact else ()),
            plain_number(group.macs),
            ", ".join(group.quantizers),
        ]
        for group in sensitivities.groups
    ]
    return table(columns, rows)


def frontier_table(search: Search | None) -> dict[str, Any] | None:
    """Variants that a search found, in its order."""
    if search is None or not search.frontier:
        return None
    is_timed = any(point.latency_ms is not None for point in search.frontier)
    columns = (
        Column("point", "number"),
        Column("chosen"),
        Column("metric", "number"),
        Column("multiply-adds in float", "number"),
        Column("bytes", "number"),
        *((Column("latency", "number", unit="ms"),) if is_timed else ()),
        Column("recovery"),
        Column("decided otherwise than given"),
    )
    rows = [
        [
            index,
            "chosen" if index == search.chosen else "",
            *(plain_number(value) for value in (point.metric, point.macs_float, point.nbytes)),
            *((plain_number(point.latency_ms),) if is_timed else ()),
            ", ".join(point.recovery),
            "\n".join(f"{module}: {choice}" for module, choice in point.choices),
        ]
        for index, point in enumerate(search.frontier)
    ]
    return table(columns, rows)


def output_table(comparison: Comparison | None) -> dict[str, Any] | None:
    """Figures of each output of the model."""
    if comparison is None or not comparison.outputs:
        return None
    columns = (
        Column("output"),
        Column("SQNR", "number", unit="dB"),
        Column("cosine", "number"),
        Column("mean error", "number"),
        Column("max error", "number"),
    )
    rows = [
        [
            name,
            *(plain_number(figures.get(key)) for key in ("sqnr", "cosine", "mean_error", "max_error")),
        ]
        for name, figures in comparison.outputs
    ]
    return table(columns, rows)


def requantized_table(ledger: Ledger) -> dict[str, Any] | None:
    """Tensors that are quantized in one way where they are made, and in another where they are used."""
    if not ledger.boundaries:
        return None
    columns = (Column("made by", "node"), Column("as"), Column("used by", "node"), Column("used as"))
    rows = [
        [
            edge.producer,
            f"{edge.made_as} ({edge.made_by})",
            edge.user,
            f"{edge.used_as} ({edge.used_by})",
        ]
        for edge in ledger.boundaries
    ]
    return table(columns, rows)
