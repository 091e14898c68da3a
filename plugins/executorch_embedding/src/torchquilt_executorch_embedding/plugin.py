"""Manifest of the embedding backend. Imports no torch, since every listing imports this module."""

from torchquilt.backend import Manifest, PresetInfo, hookimpl


@hookimpl
def torchquilt_manifest() -> Manifest:
    """Say what this plugin is."""
    return Manifest(
        name="executorch_embedding",
        api=1,
        summary="weight-only embedding tables of 8, 4 or 2 bits for the embedding kernels of ExecuTorch",
        quantizer="torchquilt_executorch_embedding.quantizer:ExecuTorchEmbeddingQuantizer",
        presets=(
            PresetInfo("byte_per_row", "8-bit weights with one scale per row of the table"),
            PresetInfo("int4_per_row", "4-bit weights with one scale per row of the table"),
            PresetInfo("int2_per_row", "2-bit weights with one scale per row of the table"),
            *(
                PresetInfo(
                    f"{name}_group{size}", f"{bits}-bit weights with one scale for each {size} of a row"
                )
                for name, bits in (("byte", 8), ("int4", 4), ("int2", 2))
                for size in (32, 64, 128)
            ),
        ),
        targets=("executorch",),
        contributions={"executorch": "torchquilt_executorch_embedding.lowering:CONTRIBUTION"},
    )
