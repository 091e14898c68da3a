"""The quantizer: XNNPACK's table and presets; everything else is the core's PatternQuantizer.

Importing this module does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchquilt import PatternQuantizer, Sharing
from torchquilt_xnnpack.forms import may_need_other_forms, write_claims, write_parts
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
        """Besides what every table needs: write what is claimed in the form that the delegate takes.

        What is written computes the same; :mod:`torchquilt_xnnpack.forms` has all of it.
        """
        write_parts(model, self.intent)
        if may_need_other_forms(model, self.table, self.intent):
            computing = [
                claim for claim in self.claims(model) if claim.row.sharing is not Sharing.FOLLOWS_INPUT
            ]
            passing = self.claims(model, as_if_inputs_were_quantized=True)
            following = [claim for claim in passing if claim.row.sharing is Sharing.FOLLOWS_INPUT]
            write_claims(model, (*computing, *following))
        return super().transform_for_annotation(model)
