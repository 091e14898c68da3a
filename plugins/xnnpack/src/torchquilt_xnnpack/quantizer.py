"""The quantizer: XNNPACK's table and presets; everything else is the core's PatternQuantizer.

Importing this module does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchquilt import PatternQuantizer
from torchquilt_xnnpack.conditions import bounds
from torchquilt_xnnpack.specs import PRESETS
from torchquilt_xnnpack.support import SUPPORT

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


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

        What is written computes the same: ``hardtanh`` for a fused ``clamp`` with two bounds,
        ``reshape`` for ``squeeze`` and ``unsqueeze``, and a bias of its own for each operator that
        shares one (the delegate quantizes a bias once, by the scale of the input of its first reader).
        """
        from torchquilt.graph.edits import own_copy

        model = super().transform_for_annotation(model)
        for claim in self.claims(model):
            name = claim.match.pattern.operators[-1].name
            if name == "clamp" and claim.match.output is not claim.match.anchor:
                _write_as_hardtanh(claim.match.output)
            elif name in ("squeeze", "unsqueeze"):
                _write_as_reshape(claim.match.output)
            for bias in claim.match.inputs("bias"):
                if claim.row.mode == "static" and len(bias.users) > 1:
                    own_copy(model, claim.match.anchor, bias)
        return model


def _write_as_hardtanh(clamp: Node) -> None:
    import torch

    clamp.args = (clamp.args[0], *bounds(clamp))
    clamp.kwargs = {}
    clamp.target = torch.ops.aten.hardtanh.default


def _write_as_reshape(node: Node) -> None:
    import torch

    node.args = (node.args[0], list(node.meta["val"].shape))
    node.kwargs = {}
    node.target = torch.ops.aten.reshape.default
