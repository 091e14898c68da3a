"""The quantizer: ONNX Runtime's table and presets; everything else is the core's PatternQuantizer.

Importing this module does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torchquilt import PatternQuantizer
from torchquilt.backend import rewrites
from torchquilt_onnxruntime.specs import PRESETS
from torchquilt_onnxruntime.support import SUPPORT

if TYPE_CHECKING:
    from torch.fx import GraphModule


def _softmax_of_masked_scores() -> tuple[Any, tuple[Any, ...]]:
    """A model for the conformance kit that breaks a constraint of softmax."""
    import torch

    class Masked(torch.nn.Module):
        def forward(self, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return torch.softmax(scores + mask, -1)

    return Masked(), (torch.rand(2, 4, 4), torch.triu(torch.full((4, 4), -1e9), 1))


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
    conformance_examples: ClassVar = {"softmax": _softmax_of_masked_scores}

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Write as slices what is split, where something is asked: a part is then read as integers."""
        return rewrites.parts_as_slices(model, self.asks_for)
