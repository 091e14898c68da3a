"""The XNNPACK backend of torchquilt.

``support`` is the table of what it quantizes, ``specs`` the configurations that can be asked for,
``quantizer`` the class that applies them, and ``plugin`` what a listing says of it.

The names below are imported when they are first used: listing the installed backends imports this package,
and must not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchquilt.backend import lazy_names

# The imports below say the same to type checkers, and a test holds the two equal.
_MODULE_OF = {
    "SUPPORT": "support",
    "XNNPACKQuantizer": "quantizer",
    "get_int4_weight_config": "specs",
    "get_symmetric_quantization_config": "specs",
}

__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:
    from torchquilt_xnnpack.quantizer import XNNPACKQuantizer as XNNPACKQuantizer
    from torchquilt_xnnpack.specs import get_int4_weight_config as get_int4_weight_config
    from torchquilt_xnnpack.specs import (
        get_symmetric_quantization_config as get_symmetric_quantization_config,
    )
    from torchquilt_xnnpack.support import SUPPORT as SUPPORT
else:
    __getattr__, __dir__ = lazy_names(globals(), _MODULE_OF)
