"""The quantizer: the embedding table and its presets; everything else is the core's PatternQuantizer.

Importing this module does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchquilt import PatternQuantizer
from torchquilt_executorch_embedding.specs import PRESETS, get_embedding_byte_config
from torchquilt_executorch_embedding.support import SUPPORT

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


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

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Write each claimed embedding as the kernel takes it: with int64 indices and no further options.

        Those options (``padding_idx``, ``scale_grad_by_freq``, ``sparse``) only matter to gradients.
        """
        model = super().transform_for_annotation(model)
        for claim in self.claims(model):
            embedding = claim.match.anchor
            table, indices = embedding.args[:2]
            embedding.args = (table, _as_int64(model, indices, embedding))
            embedding.kwargs = {}
        return model


def _as_int64(model: GraphModule, indices: Any, embedding: Node) -> Any:
    import torch

    from torchquilt.backend import take_origin

    value = indices.meta["val"]
    if value.dtype is torch.int64:
        return indices
    with model.graph.inserting_before(embedding):
        cast = model.graph.call_function(torch.ops.aten.to.dtype, (indices, torch.int64))
    take_origin(cast, embedding)
    with value.fake_mode:
        cast.meta["val"] = value.to(torch.int64)
    return cast
