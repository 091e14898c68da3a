"""The quantizer: OpenVINO's table and presets; everything else is the core's PatternQuantizer.

Importing this module does not import torch.
"""

from __future__ import annotations

from torchquilt import PatternQuantizer
from torchquilt_openvino.specs import PRESETS
from torchquilt_openvino.support import SUPPORT


class OpenVINOQuantizer(PatternQuantizer):
    """Quantizes for OpenVINO's CPU kernels: int8, static, or weights alone.

    Nothing is quantized until something is asked for::

        OpenVINOQuantizer().set_global(get_openvino_config())

    Rules are given with ``set_global``, ``set_object_type``, ``set_module_name`` and
    ``set_filter_function``; each takes a config, or None for "leave it in float", and returns the
    quantizer. The most specific rule wins.
    """

    TABLE = SUPPORT
    PRESETS = PRESETS
