"""Claims: the operators that a backend quantized, of which none of its rows names the target.

A composition may have quantizers of several targets. What one of them quantizes for another target may run
as integers here all the same, since Q/DQ says what is meant; but it promises nothing. Importing this module
does not import torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import attrs

from torchquilt.errors import TorchquiltError
from torchquilt.ledger.ledger import Ledger
from torchquilt.plugins import registry


@attrs.frozen
class Unclaimed:
    """Reason why an operator is promised to run as integers elsewhere, and not on a target.

    Args:
        backend: name of the backend that quantized it.
        promised: the targets that its rows name.
        target: the target that is lowered to.
    """

    backend: str
    promised: frozenset[str]
    target: str

    def __str__(self) -> str:
        promised = ", ".join(sorted(self.promised)) or "no target"
        return f"{self.backend} quantized it for {promised}, and promises nothing for {self.target}"


def unclaimed(ledger: Ledger | None, backends: Collection[str], target: str) -> Mapping[str, Unclaimed]:
    """The quantized operators that no row promises integers for on a target.

    Args:
        ledger: of the model; None where there is none.
        backends: names of the installed backends that quantized it.
        target: name of the target.

    Returns:
        Operator → who quantized it for which targets.
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
            found[row.node] = Unclaimed(backend, promised, target)
    return found


def _class_of(backend: str) -> Any:
    try:
        return registry.quantizer_class(backend)
    except TorchquiltError:  # it is not installed, or does not load; who needs it says so
        return None


def _targets_of(owner: Any, pattern: str) -> frozenset[str] | None:
    """The targets of the rows of a pattern; None where the class has no table with such rows."""
    rows = [row for row in getattr(getattr(owner, "TABLE", None), "rows", ()) if row.pattern.name == pattern]
    return frozenset(target for row in rows for target in row.targets) if rows else None
