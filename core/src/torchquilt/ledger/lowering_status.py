"""Lowering status of an operator.

:data:`torchquilt.reasons.LOWERING_STATUSES` has the codes, which are stable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from torchquilt._internal.text_tables import counted


@attrs.frozen
class LoweringStatus:
    """Lowering status of an operator.

    Args:
        code: a stable code, one of :data:`torchquilt.reasons.LOWERING_STATUSES`.
        delegate: the delegate that runs it and its number in the program; empty where none does.
        text: how that is known; for what a delegate refuses, its words.
    """

    code: str
    delegate: str
    text: str


def lowered_lines(statuses: Mapping[str, Sequence[Any]]) -> list[str]:
    """Number of rows for each lowering status, and each row that was quantized for nothing."""
    lines = ["lowered:"] if statuses else []
    for code, rows in sorted(statuses.items()):
        quantized = sum(row.is_quantized for row in rows)
        lines.append(f"  {code}: {counted(len(rows), 'operator')}, {quantized} of them quantized")
        if code in ("refused_by_delegate", "fell_back_to_float", "delegated_as_float"):
            lines += [
                f"    {row.node} ({row.op}, module {row.module or '(root)'}): {row.lowered.text}"
                for row in rows
                if row.lowered is not None and (row.is_quantized or code == "refused_by_delegate")
            ]
    return lines
