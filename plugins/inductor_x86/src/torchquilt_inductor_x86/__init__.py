"""Inductor on x86 as a backend and as a lowering target of torchquilt.

``support`` is the table of what it quantizes, ``specs`` the configurations that can be asked for,
``quantizer`` the class that applies them. ``target`` makes AOTInductor packages, ``runner`` runs them,
``compiled`` makes a callable for this process, and ``plugin`` is what a listing says.

The names below are imported when they are first used: listing the installed plugins imports this package, and
must not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchquilt.backend import lazy_names

# The imports below say the same to type checkers, and a test holds the two equal.
_MODULE_OF = {
    "SUPPORT": "support",
    "InductorTarget": "target",
    "X86InductorQuantizer": "quantizer",
    "compiled": "callables",
    "get_default_x86_inductor_quantization_config": "specs",
    "get_weight_only_config": "specs",
}

__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:
    from torchquilt_inductor_x86.callables import compiled as compiled
    from torchquilt_inductor_x86.quantizer import X86InductorQuantizer as X86InductorQuantizer
    from torchquilt_inductor_x86.specs import (
        get_default_x86_inductor_quantization_config as get_default_x86_inductor_quantization_config,
    )
    from torchquilt_inductor_x86.specs import get_weight_only_config as get_weight_only_config
    from torchquilt_inductor_x86.support import SUPPORT as SUPPORT
    from torchquilt_inductor_x86.target import InductorTarget as InductorTarget
else:
    __getattr__, __dir__ = lazy_names(globals(), _MODULE_OF)
