"""The runtime of ExecuTorch as a lowering target of torchquilt.

``target`` makes programs, ``opened`` reads what of them runs where, ``stored`` reads programs that are
stored, ``runner`` runs them, and ``plugin`` is what a listing says. What a backend needs of ExecuTorch is in
the plugin of that backend.

The names below are imported when they are first used: listing the installed plugins imports this package, and
must not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchquilt.backend import lazy_names

# The imports below say the same to type checkers, and a test holds the two equal.
_MODULE_OF = {"ExecuTorchTarget": "target"}

__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:
    from torchquilt_executorch.target import ExecuTorchTarget as ExecuTorchTarget
else:
    __getattr__, __dir__ = lazy_names(globals(), _MODULE_OF)
