"""Finding, checking and loading the installed backends.

It goes in two stages. A listing reads entry points and asks each plugin module for its manifest, which
needs no torch. The class behind a backend is imported only when :func:`quantizer` is asked for it.

A plugin that is in trouble must not take the others with it, so each is examined by itself and what went
wrong becomes part of its record. The error is raised when somebody asks for that plugin by name. Nothing is
kept between calls: what is installed, and what the environment allows, may change while a notebook runs.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import attrs
import importlib_metadata
import pluggy

from torchquilt.errors import (
    PluginConflictError,
    PluginError,
    PluginLoadError,
    PluginNotFoundError,
    UnsupportedConfigError,
)
from torchquilt.plugins import hookspecs
from torchquilt.plugins.manifest import API, Manifest

if TYPE_CHECKING:
    from torchquilt.quantizers import Quantizer

#: The entry-point group that plugins are found by.
GROUP = hookspecs.PROJECT
#: Names of the only plugins that may be used, separated by commas. Set but empty, it allows none.
ALLOW_VARIABLE = "TORCHQUILT_PLUGINS"
#: Names of plugins that may not be used, separated by commas. It wins over the other one.
BLOCK_VARIABLE = "TORCHQUILT_DISABLE_PLUGINS"

Status = Literal["ok", "broken", "incompatible", "duplicate", "disabled"]
Stage = Literal["metadata", "import", "hook", "manifest", "api"]

# Code of a plugin may also call sys.exit() when something is missing; only the user may end the program.
_PLUGIN_FAILURES = (Exception, SystemExit)


@attrs.frozen
class KnownPlugin:
    """A plugin that the project publishes, so that asking for it can be answered before it is installed."""

    name: str
    distribution: str
    summary: str


KNOWN = (
    KnownPlugin("executorch_embedding", "torchquilt-executorch-embedding", "8-bit embedding tables"),
    KnownPlugin("xnnpack", "torchquilt-xnnpack", "8-bit convolutional and linear models on CPUs"),
)


@attrs.frozen
class Backend:
    """What is known of one installed plugin.

    Args:
        name: what :func:`quantizer` knows it by.
        distribution: the installed package that it comes from.
        version: the version of that package.
        status: ``ok``; ``broken`` (it could not be asked for its manifest); ``incompatible`` (made for
            another plugin interface); ``duplicate`` (works, but another distribution has the same name);
            ``disabled`` (by an environment variable, and not looked at).
        stage: how far it came, if it is broken or incompatible.
        error: why the status is not ``ok``.
        manifest: what it says of itself, if it came that far.
        exception: the original exception behind ``error``. It takes no part in comparisons.
    """

    name: str
    distribution: str
    version: str
    status: Status
    stage: Stage | None = None
    error: str | None = None
    manifest: Manifest | None = None
    exception: BaseException | None = attrs.field(default=None, eq=False, repr=False)

    @property
    def remark(self) -> str:
        """One line for listings: the summary of a backend that works, the trouble of one that does not."""
        if self.error is None:
            return self.manifest.summary if self.manifest else ""
        line = self.error.partition("\n")[0]
        return f"{self.stage}: {line}" if self.stage else line


class Backends(tuple[Backend, ...]):
    """The installed backends in the order of their names: a tuple that prints as a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        if not self:
            return "\n".join(
                ["No backend is installed. These are published:"]
                + [f"  pip install {known.distribution}  ({known.summary})" for known in KNOWN]
            )
        rows = [("name", "distribution", "version", "status", "")]
        rows += [(b.name, b.distribution, b.version, b.status, b.remark) for b in self]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)


def backends() -> Backends:
    """List the installed backends, without importing torch.

    A plugin that cannot be used is listed too, with the reason; this function does not fail because of one.

    Returns:
        One :class:`Backend` for each entry point of the group ``torchquilt``.

    Warns:
        UserWarning: an environment variable names a plugin that is not installed.
    """
    offers = _find_offers()
    _warn_of_strangers(offers)
    return Backends(_mark_duplicates([_examine(offer) for offer in offers]))


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
    offers = _find_offers()
    _warn_of_strangers(offers)
    backend, manifest = _usable(_examine(_choose(offers, name, distribution)))
    if preset is not None and preset not in manifest.preset_names:
        raise _no_such_preset(manifest, preset)
    cls = _load_class(backend, manifest)
    if preset is not None and not hasattr(cls, "from_preset"):
        raise PluginLoadError(
            f"The backend {backend.name!r} names presets that its class cannot make.",
            quantizer=backend.name,
            expected="a classmethod from_preset(name)",
            got=f"{manifest.quantizer} without one",
            remedy=f"report it to the authors of {backend.distribution}",
        )
    made: Quantizer = cls() if preset is None else cls.from_preset(preset)
    return made


def quantizer_class(name: str, *, distribution: str | None = None) -> Any:
    """The class of a backend's quantizers, which answers what the backend can do without one being made.

    Args:
        name: as for :func:`quantizer`.
        distribution: likewise.

    Raises:
        As :func:`quantizer`.
    """
    offers = _find_offers()
    _warn_of_strangers(offers)
    return _load_class(*_usable(_examine(_choose(offers, name, distribution))))


# --- Finding: who offers which name -------------------------------------------------------------------------


@attrs.frozen
class _Offer:
    """A distribution says that it has a backend of this name; nothing of it has been imported."""

    name: str
    distribution: str
    version: str
    entry_point: importlib_metadata.EntryPoint | None
    unreadable: Exception | None = None

    @property
    def handles(self) -> frozenset[str]:
        """What the environment variables may call it."""
        return frozenset({_normal(self.name), _normal(self.distribution)})


def _normal(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(".", "_")


def _find_offers() -> list[_Offer]:
    # Something may have been installed since the last look; finders remember the folders that they have read.
    importlib.invalidate_caches()
    offers: list[_Offer] = []
    seen: set[str] = set()
    for dist in importlib_metadata.distributions():
        if not _mentions_group(dist):
            continue  # most distributions end here
        name, version = _identity(dist)
        if _normal(name) in seen:
            continue  # hidden by the one that comes first on the path, as its modules are
        seen.add(_normal(name))
        offers += _offers_of(dist, name, version)
    return sorted(offers, key=lambda offer: (offer.name, offer.distribution))


def _mentions_group(dist: importlib_metadata.IDistribution) -> bool:
    try:
        return f"[{GROUP}]" in (dist.read_text("entry_points.txt") or "")
    except (OSError, UnicodeError):
        return False  # damaged, and nothing says that it has to do with us


def _identity(dist: importlib_metadata.IDistribution) -> tuple[str, str]:
    """Name and version of a distribution, also of one whose metadata was lost in a failed install."""
    try:
        return dist.name or "unknown", dist.version or "unknown"
    except Exception:
        return "unknown", "unknown"


def _offers_of(dist: importlib_metadata.IDistribution, name: str, version: str) -> Iterable[_Offer]:
    try:
        entry_points = tuple(dist.entry_points.select(group=GROUP))
    except Exception as error:
        # The file cannot be read, so neither can the name of the backend; the package is all that is known.
        return [_Offer(_normal(name), name, version, None, error)]
    return [_Offer(point.name, name, version, point) for point in entry_points]


# --- The environment variables ------------------------------------------------------------------------------


def _listed(variable: str) -> tuple[str, ...] | None:
    """The names in an environment variable, or None when it is not set."""
    text = os.environ.get(variable)
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _disabled_by(offer: _Offer) -> str | None:
    """How the environment disables a plugin, as the end of a sentence, or None."""
    if offer.handles & {_normal(name) for name in _listed(BLOCK_VARIABLE) or ()}:
        return f"by {BLOCK_VARIABLE}, which names it"
    allowed = _listed(ALLOW_VARIABLE)
    if allowed is not None and not offer.handles & {_normal(name) for name in allowed}:
        return f"by {ALLOW_VARIABLE}, which does not name it"
    return None


def _warn_of_strangers(offers: Sequence[_Offer]) -> None:
    """Warn of names in the environment variables that have no effect, since nothing installed has them."""
    handles = {handle: offer.name for offer in offers for handle in offer.handles}
    for variable in (ALLOW_VARIABLE, BLOCK_VARIABLE):
        for name in _listed(variable) or ():
            if _normal(name) in handles:
                continue
            nearest = _nearest(name, handles)
            hint = f"did you mean {nearest[0]!r}?" if nearest else _installed(offers)
            warnings.warn(
                f"{variable} names {name!r}, but no installed plugin is called that: {hint}", stacklevel=3
            )


# --- Examining: what a plugin says of itself ----------------------------------------------------------------


def _examine(offer: _Offer) -> Backend:
    """Ask a plugin for its manifest. Whatever goes wrong on the way ends up in the record."""
    record = functools.partial(Backend, offer.name, offer.distribution, offer.version)
    reason = _disabled_by(offer)
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
    except _PLUGIN_FAILURES as error:
        return record("broken", stage=stage, error=f"{type(error).__name__}: {error}", exception=error)
    return record("ok", manifest=manifest)


def _register(plugin: object, offer: _Offer) -> pluggy.PluginManager:
    """Have pluggy check the hooks of a plugin, in a manager of its own, which a bad one may spoil."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin, offer.name)
    if not manager.hook.torchquilt_manifest.get_hookimpls():
        manager.check_pending()  # says so if there is one with its name misspelt
        raise PluginError(
            f"The plugin {offer.name!r} does not implement the hook torchquilt_manifest.",
            quantizer=offer.name,
            expected="a function torchquilt_manifest() that is marked with torchquilt.plugins.hookimpl",
            got=f"none in {offer.entry_point.value if offer.entry_point else plugin!r}",
            remedy="add the function, or the marker",
        )
    return manager


def _ask_for_manifest(manager: pluggy.PluginManager, offer: _Offer) -> Manifest:
    manifest: object = manager.hook.torchquilt_manifest()
    if not isinstance(manifest, Manifest):
        raise PluginError(
            f"The hook torchquilt_manifest of the plugin {offer.name!r} did not return a manifest.",
            quantizer=offer.name,
            expected="torchquilt.Manifest",
            got=repr(manifest),
            remedy="return Manifest(name=..., api=..., summary=..., quantizer='module:Class')",
        )
    if manifest.name != offer.name:
        raise PluginError(
            "A plugin has one name in its entry point and another in its manifest.",
            quantizer=offer.name,
            expected=f"{offer.name!r}, as in the entry point",
            got=f"{manifest.name!r} in the manifest",
            remedy=f"use one name in both; the entry point is in the pyproject.toml of {offer.distribution}",
        )
    return manifest


def _mark_duplicates(records: Sequence[Backend]) -> list[Backend]:
    counts = Counter(_normal(record.name) for record in records if record.status != "disabled")
    return [
        attrs.evolve(record, status="duplicate", error="another distribution has a backend of this name")
        if record.status == "ok" and counts[_normal(record.name)] > 1
        else record
        for record in records
    ]


# --- Choosing and loading one -------------------------------------------------------------------------------


def _choose(offers: Sequence[_Offer], name: str, distribution: str | None) -> _Offer:
    """The one offer that is meant, before anything of it is imported."""
    named = [offer for offer in offers if _normal(offer.name) == _normal(name)]
    if not named:
        raise _not_found(offers, name)
    if distribution is not None:
        owners = [offer.distribution for offer in named]
        named = [offer for offer in named if _normal(offer.distribution) == _normal(distribution)]
        if not named:
            raise PluginNotFoundError(
                f"The distribution {distribution!r} has no backend {name!r}.",
                quantizer=name,
                expected=f"one of: {', '.join(owners)}",
                got=repr(distribution),
                remedy="name one of these, or leave distribution out",
            )
    enabled = [offer for offer in named if _disabled_by(offer) is None]
    if not enabled:
        raise PluginLoadError(
            f"The backend {name!r} is installed, but disabled {_disabled_by(named[0])}.",
            quantizer=name,
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
            quantizer=name,
            expected="one",
            got=", ".join(f"{offer.distribution} {offer.version}" for offer in enabled),
            remedy=f"pass distribution={owners[0]!r}, or set {BLOCK_VARIABLE}={owners[-1]}, or uninstall one",
        )
    return enabled[0]


def _usable(backend: Backend) -> tuple[Backend, Manifest]:
    """The backend with its manifest, or the error that says why it cannot be used."""
    if backend.status == "incompatible" and backend.manifest is not None:
        newer = backend.manifest.api > API
        raise PluginLoadError(
            f"The backend {backend.name!r} was made for another plugin interface.",
            quantizer=backend.name,
            expected=f"plugin interface {API}, which this torchquilt speaks",
            got=f"plugin interface {backend.manifest.api} in {backend.distribution} {backend.version}",
            remedy=f"pip install --upgrade {'torchquilt' if newer else backend.distribution}",
        )
    if backend.manifest is None:
        raise PluginLoadError(
            f"The backend {backend.name!r} is installed, but broken.",
            quantizer=backend.name,
            expected=f"{backend.distribution} {backend.version} to give its manifest",
            got=f"at the stage {backend.stage!r}: {backend.error}",
            remedy=_mend(backend),
        ) from backend.exception
    return backend, backend.manifest


def _load_class(backend: Backend, manifest: Manifest) -> Any:
    module_name, _, path = manifest.quantizer.partition(":")
    try:
        cls = functools.reduce(getattr, path.split("."), importlib.import_module(module_name))
    except _PLUGIN_FAILURES as error:
        raise PluginLoadError(
            f"The class of the backend {backend.name!r} cannot be imported.",
            quantizer=backend.name,
            expected=manifest.quantizer,
            got=f"{type(error).__name__}: {error}",
            remedy=_mend(backend),
        ) from error
    if not callable(cls):
        raise PluginLoadError(
            f"The manifest of the backend {backend.name!r} does not name a class.",
            quantizer=backend.name,
            expected=f"a class at {manifest.quantizer}",
            got=repr(cls),
            remedy=f"report it to the authors of {backend.distribution}",
        )
    return cls


def _mend(backend: Backend) -> str:
    return f"mend what that error names, or reinstall: pip install --force-reinstall {backend.distribution}"


# --- Answers to what does not exist -------------------------------------------------------------------------


def _nearest(word: str, candidates: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(_normal(word), list(candidates), n=3)


def _installed(offers: Sequence[_Offer]) -> str:
    names = sorted({offer.name for offer in offers})
    return f"installed are {', '.join(names)}" if names else "none is installed"


def _not_found(offers: Sequence[_Offer], name: str) -> PluginNotFoundError:
    # Somebody may use the name of the package, so that leads to the backend too.
    installed = {handle: offer.name for offer in offers for handle in offer.handles}
    published = {_normal(handle): known for known in KNOWN for handle in (known.name, known.distribution)}
    exact = published.get(_normal(name))
    if exact is not None and exact.name not in installed:
        remedy = f"pip install {exact.distribution}"
    elif nearest := _nearest(name, installed):
        meant = dict.fromkeys(installed[handle] for handle in nearest)
        remedy = f"did you mean {' or '.join(map(repr, meant))}?"
    elif nearest := _nearest(name, published):
        known = published[nearest[0]]
        remedy = f"did you mean {known.name!r}? It is not installed: pip install {known.distribution}"
    else:
        remedy = "install the plugin that has it; torchquilt.backends() lists what there is"
    return PluginNotFoundError(
        f"No installed plugin is called {name!r}.",
        quantizer=name,
        expected=_installed(offers),
        got=repr(name),
        remedy=remedy,
    )


def _no_such_preset(manifest: Manifest, preset: str) -> UnsupportedConfigError:
    nearest = _nearest(preset, manifest.preset_names)
    return UnsupportedConfigError(
        f"The backend {manifest.name!r} has no preset {preset!r}.",
        quantizer=manifest.name,
        expected=f"one of: {', '.join(manifest.preset_names)}" if manifest.presets else "none: it has none",
        got=repr(preset),
        remedy=f"did you mean {nearest[0]!r}?" if nearest else "use one of these, or leave preset out",
    )
