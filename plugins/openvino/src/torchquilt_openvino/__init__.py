"""OpenVINO's CPU kernels as a backend of torchquilt, and its runtime as a lowering target.

``support`` is the table of what is quantized, ``specs`` the configurations that can be asked for,
``quantizer`` the class that applies them, and ``plugin`` what a listing says. ``target`` makes programs:
``form`` and ``conversion`` bring them into OpenVINO's representation, ``executed`` reads what runs where,
``stored`` is the file, and ``runner`` runs it.

The names below are imported when they are first used: listing the installed plugins imports this package, and
must not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchquilt.backend import lazy_names

# The imports below say the same to type checkers, and a test holds the two equal.
_MODULE_OF = {
    "SUPPORT": "support",
    "OpenVINOQuantizer": "quantizer",
    "OpenVINOTarget": "target",
    "get_openvino_config": "specs",
}

__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:
    from torchquilt_openvino.quantizer import OpenVINOQuantizer as OpenVINOQuantizer
    from torchquilt_openvino.specs import get_openvino_config as get_openvino_config
    from torchquilt_openvino.support import SUPPORT as SUPPORT
    from torchquilt_openvino.target import OpenVINOTarget as OpenVINOTarget
else:
    __getattr__, __dir__ = lazy_names(globals(), _MODULE_OF)
