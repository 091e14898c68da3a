"""What a listing says of the embedding backend. Imports no torch, since every listing imports this module."""

from torchquilt.plugins import Manifest, PresetInfo, hookimpl


@hookimpl
def torchquilt_manifest() -> Manifest:
    """Say what this plugin is."""
    return Manifest(
        name="executorch_embedding",
        api=1,
        summary="weight-only 8-bit embedding tables for the embedding kernels of ExecuTorch",
        quantizer="torchquilt_executorch_embedding.quantizer:ExecuTorchEmbeddingQuantizer",
        presets=(PresetInfo("byte_per_row", "8-bit weights with one scale per row of the table"),),
        targets=("executorch",),
        contributions={"executorch": "torchquilt_executorch_embedding.lowering:CONTRIBUTION"},
    )
