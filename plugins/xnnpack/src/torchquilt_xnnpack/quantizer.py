"""The quantizer: XNNPACK's table and presets; everything else is the core's PatternQuantizer.

Importing this module does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchquilt import PatternQuantizer
from torchquilt.backend import rewrites
from torchquilt_xnnpack.specs import PRESETS
from torchquilt_xnnpack.support import SUPPORT

if TYPE_CHECKING:
    from torch.fx import GraphModule


class XNNPACKQuantizer(PatternQuantizer):
    """Quantizes for the XNNPACK delegate of ExecuTorch: int8, static or dynamic.

    Nothing is quantized until something is asked for::

        XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))

    Rules are given with ``set_global``, ``set_object_type``, ``set_module_name`` and
    ``set_filter_function``; each takes a config, or None for "leave it in float", and returns the
    quantizer. The most specific rule wins.
    """

    TABLE = SUPPORT
    PRESETS = PRESETS

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Write as slices what is split, and join without empty tensors, where something is asked.

        The delegate slices, also integers, and splits nothing; it takes no empty tensor.
        """
        return rewrites.parts_as_slices(model, self.asks_for)
