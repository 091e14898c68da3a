"""Manifest of the plugin. Imports no torch, since every listing imports this module."""

from torchquilt.backend import Manifest, hookimpl


@hookimpl
def torchquilt_manifest() -> Manifest:
    """Say what this plugin is."""
    return Manifest(
        name="onnxruntime",
        api=1,
        summary="programs for ONNX Runtime, as ONNX files of standard operators",
        target="torchquilt_onnxruntime.target:ONNXRuntimeTarget",
    )
