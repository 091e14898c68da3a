"""The quantizer: ONNX Runtime's table and presets; everything else is the core's PatternQuantizer.

Importing this module does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchquilt import PatternQuantizer
from torchquilt.backend import is_split, rewrites
from torchquilt_onnxruntime.specs import PRESETS
from torchquilt_onnxruntime.support import SUPPORT

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


class ONNXRuntimeQuantizer(PatternQuantizer):
    """Quantizes for the CPU kernels of ONNX Runtime: 8 bits, static or dynamic, or weights alone.

    Nothing is quantized until something is asked for::

        ONNXRuntimeQuantizer().set_global(get_default_onnxruntime_quantization_config())

    Rules are given with ``set_global``, ``set_object_type``, ``set_module_name`` and
    ``set_filter_function``; each takes a config, or None for "leave it in float", and returns the
    quantizer. The most specific rule wins.
    """

    TABLE = SUPPORT
    PRESETS = PRESETS

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Write as slices what is split, where something is asked: a part is then read as integers."""
        for node in list(model.graph.nodes):
            if is_split(node) and self._asks_for(node):
                rewrites.split_as_slices(model, node)
            elif rewrites.joins_empty(node) and self._asks_for(node):
                rewrites.without_empty(model, node)
        return model

    def _asks_for(self, node: Node) -> bool:
        rule = self.intent.rule_for(node)
        return rule is not None and rule.config is not None and self.intent.passes_filter(node)
