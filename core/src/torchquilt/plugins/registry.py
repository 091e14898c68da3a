"""The installed plugins: listing them, and loading the one that is asked for.

It goes in two stages. A listing reads entry points and asks each plugin module for its manifest, which
needs no torch. The class behind a plugin is imported only when somebody asks for it: :func:`quantizer` for
that of a backend, :func:`target` for that of a lowering target, :func:`contribution` for what the one gives
to the other.

A plugin that is in trouble must not take the others with it, so each is examined by itself and what went
wrong becomes part of its record. The error is raised when somebody asks for that plugin by name. Nothing is
kept between calls: what is installed, and what the environment allows, may change while a notebook runs.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torchquilt.errors import (
    PluginConflictError,
    PluginLoadError,
    PluginNotFoundError,
    UnsupportedConfigError,
    did_you_mean,
)
from torchquilt.plugins.discovery import (
    ALLOW_VARIABLE,
    BLOCK_VARIABLE,
    GROUP,
    Offer,
    disabled_by,
    find_offers,
    installed_names,
    nearest,
    normal,
    warn_of_strangers,
)
from torchquilt.plugins.foreign import foreign_backends
from torchquilt.plugins.listing import KNOWN, Backend, Backends, ForeignBackend, Kind, KnownPlugin
from torchquilt.plugins.manifest import Manifest, PresetInfo
from torchquilt.plugins.validation import (
    PLUGIN_FAILURES,
    examine,
    loaded_manifest,
    mark_duplicates,
    remedy_for,
)

if TYPE_CHECKING:
    from torchquilt.quantizers.base import Quantizer

__all__ = [
    "ALLOW_VARIABLE",
    "BLOCK_VARIABLE",
    "GROUP",
    "KNOWN",
    "Backend",
    "Backends",
    "ForeignBackend",
    "backends",
    "bridge_to",
    "contribution",
    "installed",
    "presets_of",
    "quantizer",
    "quantizer_class",
    "target",
    "targets",
    "targets_of",
    "wrapper_for",
]


def installed() -> Backends:
    """List every installed plugin, backends and lowering targets, without importing torch.

    Otherwise as :func:`backends`.
    """
    offers = find_offers()
    warn_of_strangers(offers)
    records = mark_duplicates([examine(offer) for offer in offers])
    return Backends(records, foreign_backends(records))


def backends() -> Backends:
    """List the installed backends, without importing torch.

    A plugin that cannot be used is listed too, with the reason; this function does not fail because of one.

    Returns:
        One :class:`Backend` for each entry point of the group ``torchquilt`` that is not only a lowering
        target. Their ``foreign`` has one :class:`ForeignBackend` for each quantizer of another package that
        an installed bridge makes usable, with what is missing to use it here.

    Warns:
        UserWarning: an environment variable names a plugin that is not installed.
    """
    found = installed()
    return Backends((record for record in found if record.is_backend), found.foreign)


def targets() -> Backends:
    """List the installed lowering targets, without importing torch.

    Returns:
        One :class:`Backend` for each plugin that models can be lowered to.
    """
    return Backends(record for record in installed() if record.is_target)


def quantizer(name: str, preset: str | None = None, *, distribution: str | None = None) -> Quantizer:
    """Make the quantizer of a backend. Only the plugins of that name are loaded.

    Args:
        name: name of the backend; a hyphen counts as an underscore.
        preset: one of the named configurations of the backend. Without it the quantizer comes with no
            configuration, or with the one that the backend starts from.
        distribution: which package to take it from, where several have a backend of that name.

    Raises:
        PluginNotFoundError: no installed plugin has the name, or it is not one of that distribution.
        PluginConflictError: several distributions have it and none was chosen.
        PluginLoadError: it is disabled, made for another plugin interface, or its code does not load (then
            the original exception is the cause).
        UnsupportedConfigError: the backend has no such preset.

    Warns:
        UserWarning: an environment variable names a plugin that is not installed.
    """
    backend, manifest, reference = _find_plugin(name, distribution, "backend")
    if preset is not None:
        _check_preset(manifest, preset)
    cls = _load_class(backend, reference)
    if preset is not None and not hasattr(cls, "from_preset"):
        raise PluginLoadError(
            f"The backend {backend.name!r} names presets that its class cannot make.",
            plugin=backend.name,
            expected="a classmethod from_preset(name)",
            got=f"{reference} without one",
            remedy=f"report it to the authors of {backend.distribution}",
        )
    made: Quantizer = cls() if preset is None else cls.from_preset(preset)
    return made


def presets_of(name: str, preset: str | None = None) -> tuple[PresetInfo, ...]:
    """The presets of a backend, whose class is not loaded.

    Args:
        name: of the backend, as for :func:`quantizer`.
        preset: one that has to be among them.

    Raises:
        As :func:`quantizer`.
    """
    _, manifest, _ = _find_plugin(name, None, "backend")
    if preset is not None:
        _check_preset(manifest, preset)
    return manifest.presets


def quantizer_class(name: str, *, distribution: str | None = None) -> Any:
    """The class of a backend's quantizers, which answers what the backend can do without one being made.

    Args:
        name: as for :func:`quantizer`.
        distribution: likewise.

    Raises:
        As :func:`quantizer`.
    """
    backend, _, reference = _find_plugin(name, distribution, "backend")
    return _load_class(backend, reference)


def target(name: str, *, distribution: str | None = None) -> Any:
    """A lowering target (:class:`torchquilt.lowering.Target`). Only the plugins of that name are loaded.

    Args:
        name: as for :func:`quantizer`.
        distribution: likewise.

    Raises:
        As :func:`quantizer`, where the preset plays no part.
    """
    plugin, _, reference = _find_plugin(name, distribution, "target")
    return _load_class(plugin, reference)()


def targets_of(name: str) -> tuple[str, ...]:
    """Names of the targets that a backend says it can be lowered to, installed or not.

    Args:
        name: of the backend, as for :func:`quantizer`.

    Raises:
        As :func:`quantizer`, where the preset plays no part.
    """
    _, manifest, _ = _find_plugin(name, None, "backend")
    return manifest.targets


def contribution(name: str, target: str) -> Any:
    """Load the contribution of a backend to a lowering target; None where it has none.

    Args:
        name: of the backend, as for :func:`quantizer`.
        target: name of the target.

    Raises:
        As :func:`quantizer`, where the preset plays no part.
    """
    backend, manifest, _ = _find_plugin(name, None, "backend")
    reference = manifest.contributions.get(target)
    if reference is None:
        return None
    return _load(backend, reference, f"What the backend {backend.name!r} gives to {target!r}")


def wrapper_for(package: str) -> Any:
    """The function of an installed bridge that makes quantizers of those of a package; None where none does.

    Args:
        package: the package that defines the base class of the foreign quantizers.

    Raises:
        PluginLoadError: there is one, and it does not load.
    """
    for record in installed():
        manifest = record.manifest
        if record.status == "ok" and manifest is not None and package in manifest.wraps:
            return _load(record, manifest.wraps[package], f"What wraps the quantizers of {package}")
    return None


def bridge_to(package: str) -> KnownPlugin | None:
    """The published bridge to the quantizers of a package; None where there is none."""
    return next((known for known in KNOWN if known.wraps == package), None)


_KINDS: dict[Kind, str] = {"backend": "backend", "target": "lowering target", "bridge": "bridge"}


# --- Choosing and loading one -------------------------------------------------------------------------------


def _find_plugin(name: str, distribution: str | None, kind: Kind) -> tuple[Backend, Manifest, str]:
    """The plugin that is meant, if it is of that kind, with its manifest and where its class is."""
    offers = find_offers()
    warn_of_strangers(offers)
    plugin = examine(_choose(offers, name, distribution, kind))
    manifest = loaded_manifest(plugin)
    reference = manifest.quantizer if kind == "backend" else manifest.target
    if reference is None:
        raise _of_the_other_kind(manifest, kind)
    return plugin, manifest, reference


def _choose(offers: Sequence[Offer], name: str, distribution: str | None, kind: Kind) -> Offer:
    """The one offer that is meant, before anything of it is imported."""
    named = [offer for offer in offers if normal(offer.name) == normal(name)]
    if not named:
        raise _not_found(offers, name, kind)
    if distribution is not None:
        owners = [offer.distribution for offer in named]
        named = [offer for offer in named if normal(offer.distribution) == normal(distribution)]
        if not named:
            raise PluginNotFoundError(
                f"The distribution {distribution!r} has no backend {name!r}.",
                plugin=name,
                expected=f"one of: {', '.join(owners)}",
                got=repr(distribution),
                remedy="name one of these, or leave distribution out",
            )
    enabled = [offer for offer in named if disabled_by(offer) is None]
    if not enabled:
        raise PluginLoadError(
            f"The backend {name!r} is installed, but disabled {disabled_by(named[0])}.",
            plugin=name,
            expected="a backend that the environment allows",
            got="; ".join(
                f"{variable}={os.environ[variable]!r}"
                for variable in (ALLOW_VARIABLE, BLOCK_VARIABLE)
                if variable in os.environ
            ),
            remedy="change or unset that variable",
        )
    if len(enabled) > 1:
        owners = [offer.distribution for offer in enabled]
        raise PluginConflictError(
            f"{len(enabled)} installed distributions have a backend {name!r}.",
            plugin=name,
            expected="one",
            got=", ".join(f"{offer.distribution} {offer.version}" for offer in enabled),
            remedy=f"pass distribution={owners[0]!r}, or set {BLOCK_VARIABLE}={owners[-1]}, or uninstall one",
        )
    return enabled[0]


def _load(plugin: Backend, reference: str, what: str) -> Any:
    """Import what a reference names. ``what`` begins the sentence of the error."""
    module_name, _, path = reference.partition(":")
    try:
        return functools.reduce(getattr, path.split("."), importlib.import_module(module_name))
    except PLUGIN_FAILURES as error:
        raise PluginLoadError(
            f"{what} cannot be imported.",
            plugin=plugin.name,
            expected=reference,
            got=f"{type(error).__name__}: {error}",
            remedy=remedy_for(plugin),
        ) from error


def _load_class(plugin: Backend, reference: str) -> Any:
    kind = "backend" if plugin.is_backend else "lowering target"
    cls = _load(plugin, reference, f"The class of the {kind} {plugin.name!r}")
    if not callable(cls):
        raise PluginLoadError(
            f"The manifest of the {kind} {plugin.name!r} does not name a class.",
            plugin=plugin.name,
            expected=f"a class at {reference}",
            got=repr(cls),
            remedy=f"report it to the authors of {plugin.distribution}",
        )
    return cls


# --- Answers to what does not exist -------------------------------------------------------------------------


def _not_found(offers: Sequence[Offer], name: str, kind: Kind) -> PluginNotFoundError:
    records = [examine(offer) for offer in offers]
    foreign = {each.name: each for each in foreign_backends(records)} if kind == "backend" else {}
    if normal(name) in foreign:
        return _is_foreign(foreign[normal(name)])
    offers = [offer for offer, record in zip(offers, records, strict=True) if _is_of_kind(record, kind)]
    # Somebody may use the name of the package, so that leads to the backend too.
    found = {handle: offer.name for offer in offers for handle in offer.handles}
    published = {
        normal(handle): known
        for known in KNOWN
        if known.kind == kind
        for handle in (known.name, known.distribution)
    }
    exact = published.get(normal(name))
    if exact is not None and exact.name not in found:
        remedy = f"pip install {exact.distribution}"
    elif near := nearest(name, found):
        meant = dict.fromkeys(found[handle] for handle in near)
        remedy = f"did you mean {' or '.join(map(repr, meant))}?"
    elif near := nearest(name, published):
        known = published[near[0]]
        remedy = f"did you mean {known.name!r}? It is not installed: pip install {known.distribution}"
    else:
        remedy = f"install the plugin that has it; torchquilt.{kind}s() lists what there is"
    return PluginNotFoundError(
        f"No installed {_KINDS[kind]} is called {name!r}.",
        plugin=name,
        expected=installed_names(offers),
        got=repr(name),
        remedy=remedy,
    )


def _is_foreign(found: ForeignBackend) -> PluginNotFoundError:
    """The answer to a quantizer of another package, which only its vendor's code configures."""
    module, _, cls = found.quantizer.partition(":")
    remedy = f"from {module} import {cls}; configure it as its vendor says, and compose it as it is"
    return PluginNotFoundError(
        f"{found.name!r} is a quantizer of the package {found.distribution}, and no backend.",
        plugin=found.name,
        expected="the name of a backend, which has presets",
        got=f"{cls} of {found.distribution}, by way of the bridge {found.bridge!r}",
        remedy=remedy if found.status != "missing" else f"{remedy}. Here it {found.remark}",
    )


def _is_of_kind(plugin: Backend, kind: Kind) -> bool:
    return plugin.is_backend if kind == "backend" else plugin.is_target


def _check_preset(manifest: Manifest, preset: str) -> None:
    if preset in manifest.preset_names:
        return
    raise UnsupportedConfigError(
        f"The backend {manifest.name!r} has no preset {preset!r}.",
        quantizer=manifest.name,
        expected=f"one of: {', '.join(manifest.preset_names)}" if manifest.presets else "none: it has none",
        got=repr(preset),
        remedy=did_you_mean(preset, manifest.preset_names, 1) or "use one of these, or leave preset out",
    )


def _of_the_other_kind(manifest: Manifest, kind: Kind) -> PluginNotFoundError:
    """The answer to a target that was asked to quantize, or to a backend that was asked to lower."""
    if kind == "backend":
        problem, expected = "is a lowering target and has no quantizer", "the name of a backend"
        remedy = f"torchquilt.lower(quantized, example_inputs, target={manifest.name!r})"
    else:
        problem, expected = "is no lowering target", "the name of a lowering target"
        remedy = "torchquilt.targets() lists what is installed"
        if manifest.targets:
            remedy = f"what it quantizes is lowered to {' or '.join(map(repr, manifest.targets))}"
    return PluginNotFoundError(
        f"The plugin {manifest.name!r} {problem}.",
        plugin=manifest.name,
        expected=expected,
        got=repr(manifest.name),
        remedy=remedy,
    )
