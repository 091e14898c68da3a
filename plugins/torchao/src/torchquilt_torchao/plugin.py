"""Manifest of the bridge. Imports no torch, since every listing imports this module."""

from torchquilt.backend import Manifest, hookimpl


@hookimpl
def torchquilt_manifest() -> Manifest:
    """Say what this plugin is."""
    return Manifest(
        name="torchao",
        api=1,
        summary="quantizers written for torchao's PT2E flow, in torchquilt's, and the other way round",
        wraps={"torchao": "torchquilt_torchao.foreign_quantizer:foreign"},
    )
