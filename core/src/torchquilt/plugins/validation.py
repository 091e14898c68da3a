"""Examining: what a plugin says of itself, or how far it came. Needs no torch."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence

import attrs
import pluggy

from torchquilt.errors import PluginError, PluginLoadError
from torchquilt.plugins import hookspecs
from torchquilt.plugins.discovery import Offer, disabled_by, normal
from torchquilt.plugins.listing import Backend, Stage
from torchquilt.plugins.manifest import API, Manifest

# Code of a plugin may also call sys.exit() when something is missing; only the user may end the program.
PLUGIN_FAILURES = (Exception, SystemExit)


def examine(offer: Offer) -> Backend:
    """Ask a plugin for its manifest. Whatever goes wrong on the way ends up in the record."""
    record = functools.partial(Backend, offer.name, offer.distribution, offer.version)
    reason = disabled_by(offer)
    if reason is not None:
        return record("disabled", error=f"disabled {reason}")
    stage: Stage = "metadata"
    try:
        if offer.entry_point is None:
            raise offer.unreadable or PluginError("The entry points cannot be read.")
        stage = "import"
        plugin = offer.entry_point.load()
        stage = "hook"
        manager = _register(plugin, offer)
        stage = "manifest"
        manifest = _ask_for_manifest(manager, offer)
        # Before the other hooks: one that this core does not know may be why the number differs.
        if manifest.api != API:
            text = f"speaks plugin interface {manifest.api}, this torchquilt speaks {API}"
            return record("incompatible", stage="api", error=text, manifest=manifest)
        stage = "hook"
        manager.check_pending()
    except PLUGIN_FAILURES as error:
        return record("broken", stage=stage, error=f"{type(error).__name__}: {error}", exception=error)
    return record("ok", manifest=manifest)


def _register(plugin: object, offer: Offer) -> pluggy.PluginManager:
    """Have pluggy check the hooks of a plugin, in a manager of its own, which a bad one may spoil."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin, offer.name)
    if not manager.hook.torchquilt_manifest.get_hookimpls():
        manager.check_pending()  # says so if there is one with its name misspelt
        raise PluginError(
            f"The plugin {offer.name!r} does not implement the hook torchquilt_manifest.",
            plugin=offer.name,
            expected="a function torchquilt_manifest() that is marked with torchquilt.backend.hookimpl",
            got=f"none in {offer.entry_point.value if offer.entry_point else plugin!r}",
            remedy="add the function, or the marker",
        )
    return manager


def _ask_for_manifest(manager: pluggy.PluginManager, offer: Offer) -> Manifest:
    manifest: object = manager.hook.torchquilt_manifest()
    if not isinstance(manifest, Manifest):
        raise PluginError(
            f"The hook torchquilt_manifest of the plugin {offer.name!r} did not return a manifest.",
            plugin=offer.name,
            expected="torchquilt.Manifest",
            got=repr(manifest),
            remedy="return Manifest(name=..., api=..., summary=..., quantizer='module:Class')",
        )
    if manifest.name != offer.name:
        raise PluginError(
            "A plugin has one name in its entry point and another in its manifest.",
            plugin=offer.name,
            expected=f"{offer.name!r}, as in the entry point",
            got=f"{manifest.name!r} in the manifest",
            remedy=f"use one name in both; the entry point is in the pyproject.toml of {offer.distribution}",
        )
    return manifest


def mark_duplicates(records: Sequence[Backend]) -> list[Backend]:
    """The records, where two that work share a name marked as duplicates."""
    counts = Counter(normal(record.name) for record in records if record.status != "disabled")
    return [
        attrs.evolve(record, status="duplicate", error="another distribution has a backend of this name")
        if record.status == "ok" and counts[normal(record.name)] > 1
        else record
        for record in records
    ]


def loaded_manifest(backend: Backend) -> Manifest:
    """The manifest of a backend that can be used.

    Raises:
        PluginLoadError: the backend is broken, or was made for another plugin interface.
    """
    if backend.status == "incompatible" and backend.manifest is not None:
        newer = backend.manifest.api > API
        raise PluginLoadError(
            f"The backend {backend.name!r} was made for another plugin interface.",
            plugin=backend.name,
            expected=f"plugin interface {API}, which this torchquilt speaks",
            got=f"plugin interface {backend.manifest.api} in {backend.distribution} {backend.version}",
            remedy=f"pip install --upgrade {'torchquilt' if newer else backend.distribution}",
        )
    if backend.manifest is None:
        raise PluginLoadError(
            f"The backend {backend.name!r} is installed, but broken.",
            plugin=backend.name,
            expected=f"{backend.distribution} {backend.version} to give its manifest",
            got=f"at the stage {backend.stage!r}: {backend.error}",
            remedy=remedy_for(backend),
        ) from backend.exception
    return backend.manifest


def remedy_for(backend: Backend) -> str:
    """Remedy for code of a plugin that does not load."""
    return f"mend what that error names, or reinstall: pip install --force-reinstall {backend.distribution}"
