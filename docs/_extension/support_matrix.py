"""The support matrix: a row for each row of each backend's table, as HTML that a script filters."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

import attrs

from torchquilt.support.capability_row import Capability


@attrs.frozen
class MatrixRow:
    """One row of the matrix.

    Args:
        pattern: what is quantized together, ``conv2d → relu``.
        names: other names of the operator that does the work, to search for.
        backend, mode: as :class:`Capability` has them.
        bits: of each role, ``a8 w4``: activations and weights.
        targets: where it runs as integers.
        presets: presets of the backend that take it.
        specs: in words.
        conditions: beyond operators and specs.
    """

    pattern: str
    names: tuple[str, ...]
    backend: str
    mode: str
    bits: tuple[str, ...]
    targets: tuple[str, ...]
    presets: tuple[str, ...]
    specs: str
    conditions: tuple[str, ...]


def _bits(row: Capability) -> tuple[str, ...]:
    """Bits of activations and of weights that the row takes: ``a8``, ``w4``."""
    found = {
        f"{'w' if role == 'weight' else 'a'}{spec.bits}"
        for role, specs in row.specs
        for spec in specs
        if role != "bias"
    }
    return tuple(sorted(found, key=lambda text: (text[0], int(text[1:]))))


def rows_of(capabilities: Iterable[Capability]) -> list[MatrixRow]:
    """The rows of the matrix, by operator."""
    rows = [
        MatrixRow(
            " → ".join(row.operators),
            (*row.modules, *row.functionals, *row.overloads),
            row.backend,
            row.mode,
            _bits(row),
            row.targets,
            row.presets,
            row.spec_text(),
            tuple(text for _, text in row.constraints),
        )
        for row in capabilities
    ]
    return sorted(set(rows), key=lambda row: (row.pattern, row.backend, row.mode, row.bits))


def installed_rows() -> list[MatrixRow]:
    """The rows of all installed backends."""
    import torchquilt as tq
    from torchquilt.plugins.registry import quantizer_class

    return rows_of(
        row for backend in tq.backends() for row in quantizer_class(backend.name).backend_capabilities()
    )


#: The columns that can be chosen from, with the values of a row.
FILTERS = {
    "backend": lambda row: (row.backend,),
    "mode": lambda row: (row.mode,),
    "bits": lambda row: row.bits,
    "target": lambda row: row.targets,
    "preset": lambda row: row.presets,
}


def _select(name: str, rows: list[MatrixRow]) -> str:
    values = sorted({value for row in rows for value in FILTERS[name](row)})
    options = "".join(f"<option>{escape(value)}</option>" for value in values)
    return (
        f'<label>{name} <select data-filter="{name}"><option value="">all</option>{options}</select></label>'
    )


def _row(row: MatrixRow) -> str:
    data = " ".join(f'data-{name}="{escape(" ".join(values(row)))}"' for name, values in FILTERS.items())
    text = escape(" ".join((row.pattern, *row.names)).lower())
    conditions = "".join(f"<li>{escape(one)}</li>" for one in row.conditions)
    more = (
        f"<details><summary>{escape(row.specs)}</summary><ul>{conditions}</ul></details>"
        if conditions
        else escape(row.specs)
    )
    cells = (
        ("operator", f"<code>{escape(row.pattern)}</code>"),
        ("backend", escape(row.backend)),
        ("mode", escape(row.mode)),
        ("bits", escape(" ".join(row.bits))),
        ("target", escape(", ".join(row.targets) or "–")),
        ("specs and conditions", more),
    )
    shown = "".join(f'<td data-label="{label}">{cell}</td>' for label, cell in cells)
    return f'<tr {data} data-names="{text}">{shown}</tr>'


def as_html() -> str:
    """The matrix with its controls. Without scripts it is the whole table."""
    rows = installed_rows()
    controls = "".join(_select(name, rows) for name in FILTERS)
    heads = "".join(
        f'<th scope="col">{head}</th>'
        for head in ("operator", "backend", "mode", "bits", "target", "specs and conditions")
    )
    return (
        '<form id="support-filters" role="search"><label>operator '
        '<input type="search" data-filter="names" placeholder="Linear, conv2d, aten.add …"></label>'
        f'{controls}<output aria-live="polite">{len(rows)} rows</output></form>'
        f'<table id="support-matrix"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(map(_row, rows))}</tbody></table>"
    )
