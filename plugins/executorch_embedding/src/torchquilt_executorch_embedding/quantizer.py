"""The quantizer: the embedding table and its presets; everything else is the core's PatternQuantizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchquilt import PatternQuantizer
from torchquilt_executorch_embedding.specs import PRESETS, get_embedding_byte_config
from torchquilt_executorch_embedding.support import SUPPORT

if TYPE_CHECKING:
    from torch.fx import GraphModule


class ExecuTorchEmbeddingQuantizer(PatternQuantizer):
    """Quantizes embedding tables for ExecuTorch's ``embedding_byte`` kernel: 8 bits, per row, weight only.

    There is one thing it can do, so it is asked for everywhere to begin with. Rules narrow that::

        ExecuTorchEmbeddingQuantizer().set_module_name("position_embeddings", None)
    """

    TABLE = SUPPORT
    PRESETS = PRESETS

    def __init__(self) -> None:
        super().__init__()
        self.set_global(get_embedding_byte_config())

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Drop the options that only matter to gradients; ExecuTorch fuses an embedding without them."""
        model = super().transform_for_annotation(model)
        for claim in self.claims(model):
            embedding = claim.match.anchor
            embedding.args = embedding.args[:2]
            embedding.kwargs = {}
        return model
