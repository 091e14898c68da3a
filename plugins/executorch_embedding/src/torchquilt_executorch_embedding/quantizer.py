"""The quantizer: the embedding table and its presets; everything else is the core's PatternQuantizer.

Importing this module does not import torch.
"""

from __future__ import annotations

from torchquilt import PatternQuantizer
from torchquilt_executorch_embedding.specs import PRESETS, get_embedding_byte_config
from torchquilt_executorch_embedding.support import SUPPORT


class ExecuTorchEmbeddingQuantizer(PatternQuantizer):
    """Quantizes embedding tables for ExecuTorch's embedding kernels: 8, 4 or 2 bits, weight only.

    To begin with, 8 bits per row are asked for everywhere. Rules change that::

        ExecuTorchEmbeddingQuantizer().set_module_name("position_embeddings", None)
    """

    TABLE = SUPPORT
    PRESETS = PRESETS

    def __init__(self) -> None:
        super().__init__()
        self.set_global(get_embedding_byte_config())
