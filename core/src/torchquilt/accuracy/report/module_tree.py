"""The modules of a model as a tree, each with its shares of operators, multiply-adds and the error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import attrs

from torchquilt.accuracy.report.measurements import Comparison, Sensitivities
from torchquilt.ledger.ledger import Ledger
from torchquilt.ledger.rows import Row


@attrs.frozen
class Branch:
    """A module with all that is in it.

    Args:
        name: the last part of its path.
        path: its path.
        operators, quantized: numbers of operators.
        macs, macs_quantized: multiply-adds.
        error: its share of the error, from 0 to 1; None where nothing was measured.
        inner: the modules in it.
    """

    name: str
    path: str
    operators: int
    quantized: int
    macs: int
    macs_quantized: int
    error: float | None
    inner: tuple[Branch, ...]


def errors_of(
    comparison: Comparison | None, sensitivities: Sensitivities | None
) -> tuple[dict[str, float], str]:
    """Error of each operator, to be added up, and what it is; no errors where nothing was measured.

    From sensitivities it is the noise that the operator's group adds to the outputs, in equal parts. From a
    comparison it is the noise of the operator's own error relative to its signal: the inverse of the SQNR.
    """
    costs = () if sensitivities is None else sensitivities.groups
    if any(group.noise is not None for group in costs):
        found: dict[str, float] = {}
        for group in costs:
            for node in group.nodes:
                found[node] = found.get(node, 0.0) + max(group.noise or 0.0, 0.0) / len(group.nodes)
        return _finite(found), "noise that the operators add to the outputs, from the sensitivities"
    rows = {} if comparison is None else comparison.rows
    noise = {
        node: 10 ** (-row.isolated["sqnr"] / 10)
        for node, row in rows.items()
        if "sqnr" in row.isolated and row.isolated["sqnr"] > -1000
    }
    return _finite(noise), "noise relative to the signal of each operator, from its isolated error"


def _finite(errors: Mapping[str, float]) -> dict[str, float]:
    return {node: error for node, error in errors.items() if math.isfinite(error)}


def tree_of(ledger: Ledger, errors: Mapping[str, float]) -> Branch:
    """The tree of a ledger's modules.

    Args:
        ledger: it.
        errors: of operators by their names; empty where nothing was measured.
    """
    total = math.fsum(errors.values())
    return _branch("", [(_parts(row), row) for row in ledger.rows], errors, total)


def _parts(row: Row) -> tuple[str, ...]:
    return tuple(row.module.split(".")) if row.module else ()


def _branch(
    path: str, rows: list[tuple[tuple[str, ...], Row]], errors: Mapping[str, float], total: float
) -> Branch:
    inner: dict[str, list[tuple[tuple[str, ...], Row]]] = {}
    for parts, row in rows:
        if parts:
            inner.setdefault(parts[0], []).append((parts[1:], row))
    below = f"{path}." if path else ""
    below = f"{path}." if path else ""
    branches = (_branch(below + name, found, errors, total) for name, found in inner.items())
    here = [row for _, row in rows]
    return Branch(
        path.rpartition(".")[2],
        path,
        len(here),
        sum(row.is_quantized for row in here),
        sum(row.macs for row in here),
        sum(row.macs for row in here if row.is_quantized),
        _share(here, errors, total),
        tuple(branches),
    )


def _share(rows: Iterable[Row], errors: Mapping[str, float], total: float) -> float | None:
    if not errors:
        return None
    return math.fsum(errors.get(row.node, 0.0) for row in rows) / total if total else 0.0
