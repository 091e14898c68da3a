"""``torchquilt plugins``: what is installed, and what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from torchquilt._internal.json_values import to_plain
from torchquilt.cli.exits import NO, OK
from torchquilt.cli.options import JSON_SCHEMA, Group, json_option
from torchquilt.cli.output import write, write_json, write_table

if TYPE_CHECKING:
    from torchquilt.plugins.doctor import Diagnosis
    from torchquilt.plugins.registry import Backend, Backends


@click.group(cls=Group)
def plugins() -> None:
    """The installed backends and lowering targets."""


@plugins.command("list")
@json_option
def list_(as_json: bool) -> int:
    """List the installed backends and lowering targets, without loading torch.

    A plugin that cannot be used is listed, too, with the reason; `plugins doctor` says more.
    """
    from torchquilt.plugins.registry import installed

    found = installed()
    if as_json:
        write_json({"schema": JSON_SCHEMA, **_plugins(found)})
    else:
        _show_backends(found)
    return OK


@plugins.command()
@json_option
def doctor(as_json: bool) -> int:
    """Load every plugin completely, and say what is wrong and what to do.

    Exits with 1 when something is.
    """
    from torchquilt.plugins.doctor import diagnose

    told = diagnose()
    if as_json:
        write_json(
            {
                "schema": JSON_SCHEMA,
                "versions": told.versions,
                "variables": told.variables,
                **_plugins(told.backends),
                "findings": to_plain(told.findings),
            }
        )
    else:
        _show_diagnosis(told)
    return NO if told.findings else OK


def _plugins(found: Backends) -> dict[str, Any]:
    """Backends and lowering targets; what is both is in both."""
    return {
        "backends": [_plugin(plugin) for plugin in found if plugin.is_backend],
        "targets": [_plugin(plugin) for plugin in found if plugin.is_target],
        "foreign": [{**to_plain(each), "status": each.status} for each in found.foreign],
    }


def _plugin(backend: Backend) -> dict[str, Any]:
    manifest = backend.manifest
    return {
        "name": backend.name,
        "distribution": backend.distribution,
        "version": backend.version,
        "status": backend.status,
        "stage": backend.stage,
        "error": backend.error,
        "api": None if manifest is None else manifest.api,
        "summary": None if manifest is None else manifest.summary,
        "presets": []
        if manifest is None
        else [{"name": preset.name, "summary": preset.summary} for preset in manifest.presets],
        "targets": [] if manifest is None else [*manifest.targets],
        "contributions": [] if manifest is None else [*manifest.contributions],
    }


def _show_backends(backends: Backends) -> None:
    if not backends:
        write(repr(backends))  # what could be installed
        return
    rows = [(b.name, _kind(b), b.distribution, b.version, b.status, b.remark) for b in backends]
    write_table([("name", "kind", "distribution", "version", "status", "remark"), *rows])
    if backends.foreign:
        others = [
            (each.name, each.distribution, each.version or "–", each.status, each.remark)
            for each in backends.foreign
        ]
        title = "quantizers of other packages, made as their vendors say"
        write_table([("name", "distribution", "version", "status", "remark"), *others], title)


def _kind(plugin: Backend) -> str:
    """Kind of a plugin, as far as that is known."""
    if plugin.manifest is None:
        return ""
    kinds = (("backend", plugin.is_backend), ("target", plugin.is_target), ("bridge", plugin.is_bridge))
    return " and ".join(kind for kind, is_one in kinds if is_one)


def _show_diagnosis(told: Diagnosis) -> None:
    versions = ", ".join(f"{name} {version or '(not installed)'}" for name, version in told.versions.items())
    write(f"versions: {versions}")
    for name, value in told.variables.items():
        write(f"{name}: {'not set' if value is None else repr(value)}")
    _show_backends(told.backends)
    for finding in told.findings:
        write(str(finding))
    write(f"{len(told.findings)} found" if told.findings else "nothing is wrong")
