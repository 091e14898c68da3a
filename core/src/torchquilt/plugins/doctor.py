"""Everything about the installed plugins that can be found out by using them.

A listing asks each plugin for its manifest. Here each one is loaded as a user would load it: its class is
imported and made, bare and with each preset, and asked what it supports; a lowering target is made, and what
backends give to targets is imported. Whatever goes wrong is a finding, with how far it came and what can be
done. Importing this module does not import torch; diagnosing does.
"""

from __future__ import annotations

import importlib
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import attrs
import importlib_metadata

from torchquilt.errors import PluginConflictError, PluginLoadError, TorchquiltError
from torchquilt.plugins.registry import (
    ALLOW_VARIABLE,
    BLOCK_VARIABLE,
    Backend,
    Backends,
    contribution,
    installed,
    quantizer,
    target,
)

if TYPE_CHECKING:
    from torchquilt.quantizers.base import Quantizer

#: The packages whose versions decide what works with what.
_PACKAGES = ("torchquilt", "torch", "executorch")


@attrs.frozen
class Finding:
    """One thing that is wrong.

    Args:
        subject: what it is about: a plugin, ``torch`` or ``environment``.
        stage: where it shows. For a backend that is listed as broken or incompatible the stage of the listing
            (``metadata``, ``import``, ``hook``, ``manifest``, ``api``), otherwise ``conflict``, ``class``,
            ``instance``, ``preset <name>``, ``capabilities``, ``target`` or ``contribution <target>``; for
            torch ``import``, for the environment ``names``.
        error: what is wrong, with the original error.
        remedy: what can be done.
    """

    subject: str
    stage: str
    error: str
    remedy: str | None = None

    def __str__(self) -> str:
        lines = [f"{self.subject}: {self.stage}: {self.error}"]
        return "\n".join([*lines, *([f"  to fix it: {self.remedy}"] if self.remedy else [])])


@attrs.frozen
class Diagnosis:
    """Findings, with the versions and variables that explain them.

    Args:
        versions: name → version, None for what is not installed: Python, and the packages that matter.
        variables: the environment variables that choose among plugins → value, None where not set.
        backends: the listing, of backends and lowering targets.
        findings: what is wrong; empty where nothing is.
    """

    versions: dict[str, str | None]
    variables: dict[str, str | None]
    backends: Backends
    findings: tuple[Finding, ...]


def diagnose() -> Diagnosis:
    """Load every installed plugin completely and say what is wrong. Does not fail because of one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        listed = installed()
        findings = [
            Finding("environment", "names", str(one.message), "correct the variable") for one in caught
        ]
        findings += [*_of_torch(), *_of_conflicts(listed)]
        findings += [found for plugin in listed for found in _of_plugin(plugin)]
    return Diagnosis(
        {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        {name: os.environ.get(name) for name in (ALLOW_VARIABLE, BLOCK_VARIABLE)},
        Backends(_as_found(plugin, findings) for plugin in listed),
        tuple(findings),
    )


def _as_found(plugin: Backend, findings: list[Finding]) -> Backend:
    """The listing of a plugin, which knows only its manifest, corrected by what using it showed."""
    found = next((one for one in findings if one.subject == plugin.name), None)
    if plugin.status != "ok" or found is None:
        return plugin
    return attrs.evolve(plugin, status="broken", error=f"{found.stage}: {found.error}")


def _version(distribution: str) -> str | None:
    try:
        return importlib_metadata.version(distribution)
    except importlib_metadata.PackageNotFoundError:
        return None


def _of_torch() -> Iterator[Finding]:
    error = _failure(lambda: importlib.import_module("torch"))
    if error is not None:
        yield _finding("torch", "import", error, "pip install --force-reinstall torch")


def _of_conflicts(listed: Backends) -> Iterator[Finding]:
    for name in dict.fromkeys(backend.name for backend in listed if backend.status == "duplicate"):
        error = _failure(partial(quantizer, name))
        if isinstance(error, PluginConflictError):
            yield _finding(name, "conflict", error, None)


def _of_plugin(plugin: Backend) -> Iterator[Finding]:
    if plugin.status == "disabled":
        return
    if plugin.is_backend:
        yield from _of_backend(plugin)
    yield from _of_lowering(plugin)


def _of_lowering(plugin: Backend) -> Iterator[Finding]:
    """Reasons for which models cannot be lowered to it, or its contribution cannot be loaded."""
    report = f"report it to the authors of {plugin.distribution}"
    if plugin.is_target:
        error = _failure(partial(target, plugin.name, distribution=plugin.distribution))
        if error is not None:
            yield _finding(plugin.name, "target", error, report)
    if plugin.status == "ok" and plugin.manifest is not None and plugin.is_backend:
        for name in plugin.manifest.contributions:
            error = _failure(partial(contribution, plugin.name, name))
            if error is not None:
                yield _finding(plugin.name, f"contribution {name}", error, report)


def _of_backend(backend: Backend) -> Iterator[Finding]:
    """Reasons for which its quantizer cannot be made, or faults of the quantizers that it makes."""
    report = f"report it to the authors of {backend.distribution}"

    def make(preset: str | None = None) -> Quantizer:
        return quantizer(backend.name, preset, distribution=backend.distribution)

    def ask(preset: str | None = None) -> str:
        return make(preset).quantization_capabilities().to_json()

    error = _failure(make)
    if error is not None:
        # What is no error of loading was raised by the class itself, when it was called.
        loading = backend.stage or "class"
        stage = loading if isinstance(error, PluginLoadError) else "instance"
        yield _finding(backend.name, stage, error, report)
        return
    presets = backend.manifest.preset_names if backend.manifest else ()
    for what, preset in (("capabilities", None), *((f"preset {name}", name) for name in presets)):
        error = _failure(partial(ask, preset))
        if error is not None:
            yield _finding(backend.name, what, error, report)


def _failure(action: Callable[[], object]) -> BaseException | None:
    """Exception that an action raises, None where it raises none."""
    try:
        action()
    except (Exception, SystemExit) as error:
        # Whatever the code of a plugin does, the others are to be looked at; it may call sys.exit(), too.
        return error
    return None


def _finding(subject: str, stage: str, error: BaseException, remedy: str | None) -> Finding:
    if not isinstance(error, TorchquiltError):
        return Finding(subject, stage, f"{type(error).__name__}: {error}", remedy)
    got = "" if error.got is None else f" ({error.got})"
    return Finding(subject, stage, error.problem + got, error.remedy or remedy)
