"""The quantizer: XNNPACK's table and presets; everything else is the core's PatternQuantizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchquilt import PatternQuantizer
from torchquilt_xnnpack.conditions import bounds
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
        """Besides what every table needs: write ``clamp`` as ``hardtanh`` where it is to be fused.

        With two bounds the two compute the same, but the delegate fuses only ``hardtanh``.
        """
        import torch

        model = super().transform_for_annotation(model)
        for claim in self.claims(model):
            last = claim.match.output
            if last is not claim.match.anchor and last.target is torch.ops.aten.clamp.default:
                last.args = (last.args[0], *bounds(last))
                last.kwargs = {}
                last.target = torch.ops.aten.hardtanh.default
        return model
