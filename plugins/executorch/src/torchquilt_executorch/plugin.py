"""Manifest of the target. Imports no torch, since every listing imports this module."""

from torchquilt.backend import Manifest, hookimpl


@hookimpl
def torchquilt_manifest() -> Manifest:
    """Say what this plugin is."""
    return Manifest(
        name="executorch",
        api=1,
        summary="programs for the runtime of ExecuTorch, on this machine and on devices",
        target="torchquilt_executorch.target:ExecuTorchTarget",
    )
