"""Lowering status of an operator.

The codes are stable:

===========================  ===========================================================================
``delegated_as_integers``    a delegate computes it with integers
``delegated_as_float``       a delegate computes it, in float
``portable_integer_kernel``  a kernel of the runtime itself computes it with integers
``fell_back_to_float``       it was quantized, and a kernel of the runtime itself computes it in float
``portable_kernel``          it was not quantized, and a kernel of the runtime itself computes it
``refused_by_delegate``      a delegate refuses it, so that a kernel of the runtime itself computes it
``removed``                  nothing of the program comes from it: it was folded, or did nothing
===========================  ===========================================================================
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
        code: a stable code, see above.
        place: the delegate that runs it and its number in the program; empty where none does.
        text: how that is known; for what a delegate refuses, its words.
    """

    code: str
    place: str
    text: str


def lowered_lines(statuses: Mapping[str, Sequence[Any]]) -> list[str]:
    """How many rows of a ledger came to what, by code, and each that was quantized for nothing."""
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
