"""The hooks that a plugin may implement, and the marker that it marks them with."""

from __future__ import annotations

import pluggy

from torchquilt.plugins.manifest import Manifest

#: Name of the pluggy project, and of the entry-point group.
PROJECT = "torchquilt"

hookspec = pluggy.HookspecMarker(PROJECT)
#: Marks the function of a plugin that returns its manifest, ``torchquilt_manifest()``.
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def torchquilt_manifest() -> Manifest:
    """Say what the plugin is.

    Called for every listing, so it must be quick and must not import torch.

    Returns:
        The manifest, whose name is that of the entry point.
    """
    # pluggy reads only the signature of a specification; this body never runs.
    raise NotImplementedError
