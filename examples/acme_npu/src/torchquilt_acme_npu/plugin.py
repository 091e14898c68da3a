"""Manifest of the Acme NPU backend. Imports no torch, since every listing imports this module."""

from torchquilt.backend import Manifest, PresetInfo, hookimpl


@hookimpl
def torchquilt_manifest() -> Manifest:
    """Describe this plugin."""
    return Manifest(
        name="acme_npu",
        api=1,
        summary="linear layers and convolutions for the Acme NPU, which does not exist",
        quantizer="torchquilt_acme_npu.quantizer:AcmeNPUQuantizer",
        presets=(
            PresetInfo("int8", "8-bit activations and weights"),
            PresetInfo("int16", "16-bit activations, 8-bit weights"),
            PresetInfo("int16_int4", "16-bit activations, 4-bit weights in groups of 32; linear only"),
        ),
        targets=("acme_npu",),
    )
