"""Manifest of the plugin. Imports no torch, since every listing imports this module."""

from torchquilt.backend import Manifest, PresetInfo, hookimpl


@hookimpl
def torchquilt_manifest() -> Manifest:
    """Say what this plugin is."""
    return Manifest(
        name="inductor_x86",
        api=1,
        summary="8-bit models for the x86 kernels of TorchInductor, as AOTInductor packages or compiled here",
        quantizer="torchquilt_inductor_x86.quantizer:X86InductorQuantizer",
        presets=(
            PresetInfo("static_int8", "activations calibrated; one scale a weight tensor"),
            PresetInfo("static_int8_per_channel", "activations calibrated; one weight scale a channel"),
            PresetInfo(
                "dynamic_int8_per_channel", "linear: activations at run time; one weight scale a channel"
            ),
            PresetInfo("weight_only_int8", "linear: activations in float; one weight scale a channel"),
        ),
        targets=("inductor_x86",),
        target="torchquilt_inductor_x86.target:InductorTarget",
        contributions={"inductor_x86": "torchquilt_inductor_x86.lowering:CONTRIBUTION"},
    )
