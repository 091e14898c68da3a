"""Claims: the operators that a backend quantized, of which none of its rows names the target.

A composition may have quantizers of several targets. What one of them quantizes for another target may run
as integers here all the same, since Q/DQ says what is meant; but it promises nothing. Importing this module
does not import torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torchquilt.errors import TorchquiltError
from torchquilt.ledger.ledger import Ledger
from torchquilt.plugins import registry


def unclaimed(ledger: Ledger | None, backends: Collection[str], target: str) -> Mapping[str, str]:
    """The quantized operators that no row promises integers for on a target.

    Args:
        ledger: of the model; None where there is none.
        backends: names of the installed backends that quantized it.
        target: name of the target.

    Returns:
        Operator → the sentence that says who quantized it for which targets.
    """
    if ledger is None:
        return {}
    tables = {one.__name__: (name, one) for name in backends if (one := _class_of(name)) is not None}
    found = {}
    for row in ledger.rows:
        if not row.is_quantized or row.quantizer not in tables:
            continue
        backend, owner = tables[row.quantizer]
        promised = _targets_of(owner, row.pattern)
        if promised is not None and target not in promised:
            found[row.node] = (
                f"{backend} quantized it for {', '.join(sorted(promised)) or 'no target'}, "
                f"and promises nothing for {target}"
            )
    return found


def _class_of(backend: str) -> Any:
    try:
        return registry.quantizer_class(backend)
    except TorchquiltError:  # it is not installed, or does not load; who needs it says so
        return None


def _targets_of(owner: Any, pattern: str) -> set[str] | None:
    """The targets of the rows of a pattern; None where the class has no table with such rows."""
    rows = [row for row in getattr(getattr(owner, "TABLE", None), "rows", ()) if row.pattern.name == pattern]
    return {target for row in rows for target in row.targets} if rows else None
