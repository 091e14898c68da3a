"""Manifest of the XNNPACK backend. Imports no torch, since every listing imports this module."""

from torchquilt.backend import Manifest, PresetInfo, hookimpl


@hookimpl
def torchquilt_manifest() -> Manifest:
    """Say what this plugin is."""
    return Manifest(
        name="xnnpack",
        api=1,
        summary="8-bit convolutional and linear models for the CPU kernels of XNNPACK",
        quantizer="torchquilt_xnnpack.quantizer:XNNPACKQuantizer",
        presets=(
            PresetInfo("static_int8", "activations calibrated; one scale a weight tensor"),
            PresetInfo("static_int8_per_channel", "activations calibrated; one weight scale a channel"),
            PresetInfo("dynamic_int8", "activations per token at run time; one scale a weight tensor"),
            PresetInfo(
                "dynamic_int8_per_channel", "activations per token at run time; one weight scale a channel"
            ),
            PresetInfo(
                "static_int8_weight_int4", "linear: activations calibrated; 4-bit weights, a scale a channel"
            ),
            PresetInfo(
                "dynamic_int8_weight_int4", "linear: activations per token; 4-bit weights, a scale a channel"
            ),
            *(
                PresetInfo(
                    f"dynamic_int8_weight_int4_group{size}",
                    f"linear: activations per token; 4-bit weights, a scale for each {size}",
                )
                for size in (32, 64, 128, 256)
            ),
        ),
        targets=("executorch",),
        contributions={"executorch": "torchquilt_xnnpack.lowering:CONTRIBUTION"},
    )
