"""Plugins: find and load backends and lowering targets.

A plugin is a distribution with an entry point of the group ``torchquilt`` that names a module. That module
imports no torch and implements one hook, which returns the :class:`Manifest`::

    from torchquilt.backend import Manifest, PresetInfo, hookimpl

    @hookimpl
    def torchquilt_manifest() -> Manifest: ...

The files, in the order of their imports: ``manifest`` (what a plugin says of itself), ``hookspecs`` (the
hooks that it may implement), ``listing`` (what is known of each), ``foreign`` (quantizers of other packages),
``discovery`` (finds entry points), ``validation`` (checks manifests), ``registry`` (lists and loads),
``doctor`` (finds what is wrong).
"""

from torchquilt.plugins.hookspecs import hookimpl
from torchquilt.plugins.manifest import API, Manifest, PresetInfo

__all__ = ["API", "Manifest", "PresetInfo", "hookimpl"]
