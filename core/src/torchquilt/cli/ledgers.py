"""A ledger on a terminal, and in a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from torchquilt._internal.terminal import is_terminal
from torchquilt.cli.output import write, write_table

if TYPE_CHECKING:
    from torchquilt.ledger.ledger import Ledger
    from torchquilt.ledger.rows import Row, Share


def show_ledger(ledger: Ledger) -> None:
    """Print the shares, and what stays in float and why."""
    if not is_terminal(sys.stdout):
        write(str(ledger))
        return
    show_shares(ledger)
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in ledger.left_in_float:
        grouped.setdefault((row.op, row.code), []).append(row)
    if grouped:
        # A listing of plugins imports this module and needs no reasons.
        from torchquilt.reasons import reason_of

        rows = [(op, str(len(rows)), code, rows[0].reasons[0].text) for (op, code), rows in grouped.items()]
        write_table([("operator", "number", "reason", "for example"), *rows], "left in float")
        found = dict.fromkeys(code for _, code in grouped)
        remedies = [(code, reason.remedy) for code in found if (reason := reason_of(code)) is not None]
        write_table([("reason", "to have it quantized"), *remedies])
    if ledger.boundaries:
        edges = [
            (edge.producer, edge.user, f"{edge.made_as} ({edge.made_by})", f"{edge.used_as} ({edge.used_by})")
            for edge in ledger.boundaries
        ]
        write_table([("from", "to", "made as", "used as"), *edges], "requantized")
    for problem in ledger.problems:
        write(f"problem: {problem}")
    for caution in ledger.warnings:
        write(f"warning: {caution}")


def show_shares(ledger: Ledger) -> None:
    """Print how much is quantized, and by whom."""
    rows = [
        (share.name, _part(share.nodes), _part(share.macs), _part(share.parameter_bytes))
        for share in (ledger.share(), *ledger.by_quantizer())
    ]
    write_table([("quantized", "operators", "multiply-adds", "parameter bytes"), *rows])


def share_of(ledger: Ledger) -> dict[str, Any]:
    """The shares of a ledger for JSON."""

    def values(share: Share) -> dict[str, Any]:
        pairs = {"operators": share.nodes, "macs": share.macs, "parameter_bytes": share.parameter_bytes}
        return {name: {"quantized": pair[0], "of": pair[1]} for name, pair in pairs.items()}

    return {
        "all": values(ledger.share()),
        "by_quantizer": {share.name: values(share) for share in ledger.by_quantizer()},
    }


def _part(pair: tuple[int, int]) -> str:
    return f"{pair[0]:,} of {pair[1]:,}" + (f" ({pair[0] / pair[1]:.0%})" if pair[1] else "")
