"""Manifest of the OpenVINO plugin. Imports no torch, since every listing imports this module."""

from torchquilt.backend import Manifest, PresetInfo, hookimpl


@hookimpl
def torchquilt_manifest() -> Manifest:
    """Say what this plugin is."""
    return Manifest(
        name="openvino",
        api=1,
        summary="8-bit models for the CPU kernels of OpenVINO, and its runtime",
        quantizer="torchquilt_openvino.quantizer:OpenVINOQuantizer",
        target="torchquilt_openvino.target:OpenVINOTarget",
        presets=(
            PresetInfo("static_int8", "activations calibrated; one scale a weight tensor"),
            PresetInfo("static_int8_per_channel", "activations calibrated; one weight scale a channel"),
            PresetInfo("weight_only_int8", "linear: weights alone, one scale a channel"),
        ),
        targets=("openvino",),
        contributions={"openvino": "torchquilt_openvino.lowering:CONTRIBUTION"},
    )
