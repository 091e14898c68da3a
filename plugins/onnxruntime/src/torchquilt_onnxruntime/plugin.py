"""Manifest of the plugin. Imports no torch, since every listing imports this module."""

from torchquilt.backend import Manifest, PresetInfo, hookimpl


@hookimpl
def torchquilt_manifest() -> Manifest:
    """Say what this plugin is."""
    return Manifest(
        name="onnxruntime",
        api=1,
        summary="8 bits for the CPU kernels of ONNX Runtime, and programs for it as ONNX files",
        quantizer="torchquilt_onnxruntime.quantizer:ONNXRuntimeQuantizer",
        presets=(
            PresetInfo("static_int8", "activations calibrated; one scale a weight tensor"),
            PresetInfo("static_int8_per_channel", "activations calibrated; one weight scale a channel"),
            PresetInfo(
                "dynamic_int8", "linear: activations per tensor at run time; one scale a weight tensor"
            ),
            PresetInfo(
                "dynamic_int8_per_channel",
                "linear: activations per tensor at run time; one weight scale a channel",
            ),
            PresetInfo("weight_only_int8", "linear: 8-bit weights, a scale a channel; float activations"),
            PresetInfo("weight_only_int4", "linear: 4-bit weights, a scale for each 32; float activations"),
        ),
        targets=("onnxruntime",),
        contributions={"onnxruntime": "torchquilt_onnxruntime.lowering:CONTRIBUTION"},
        target="torchquilt_onnxruntime.target:ONNXRuntimeTarget",
    )
