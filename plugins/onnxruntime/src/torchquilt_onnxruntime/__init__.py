"""ONNX Runtime for torchquilt: a backend, and the lowering target that runs what it quantizes.

``support`` is the table of what is quantized, ``specs`` the configurations that can be asked for, and
``quantizer`` the class that applies them.

``target`` makes programs. ``packages`` imports what it needs of others. ``exporting`` has torch write ONNX,
with ``translations`` of the operators that quantize and dequantize; ``writing`` brings that into the form
that the fusions take, one module for each step. ``stored`` reads and writes files, ``optimized`` reads
what the runtime made of one, ``fused_file`` makes a file of that, ``runner`` runs it, and ``plugin`` is
what a listing says.

The names below are imported when they are first used: listing the installed plugins imports this package, and
must not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchquilt.backend import lazy_names

# The imports below say the same to type checkers, and a test holds the two equal.
_MODULE_OF = {
    "ONNXRuntimeQuantizer": "quantizer",
    "ONNXRuntimeTarget": "target",
    "SUPPORT": "support",
    "com_microsoft": "lowering",
    "get_default_onnxruntime_quantization_config": "specs",
    "get_weight_only_config": "specs",
}

__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:
    from torchquilt_onnxruntime.lowering import com_microsoft as com_microsoft
    from torchquilt_onnxruntime.quantizer import ONNXRuntimeQuantizer as ONNXRuntimeQuantizer
    from torchquilt_onnxruntime.specs import (
        get_default_onnxruntime_quantization_config as get_default_onnxruntime_quantization_config,
    )
    from torchquilt_onnxruntime.specs import get_weight_only_config as get_weight_only_config
    from torchquilt_onnxruntime.support import SUPPORT as SUPPORT
    from torchquilt_onnxruntime.target import ONNXRuntimeTarget as ONNXRuntimeTarget
else:
    __getattr__, __dir__ = lazy_names(globals(), _MODULE_OF)
