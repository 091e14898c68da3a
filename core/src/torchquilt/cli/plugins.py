"""``torchquilt plugins``: what is installed, and what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import click

from torchquilt.cli.exits import NO, OK
from torchquilt.cli.options import JSON_SCHEMA, Group, json_option
from torchquilt.cli.output import write, write_json, write_table

if TYPE_CHECKING:
    from torchquilt.plugins.diagnosis import Diagnosis
    from torchquilt.plugins.registry import Backend, Backends


@click.group(cls=Group)
def plugins() -> None:
    """The installed backends."""


@plugins.command("list")
@json_option
def list_(as_json: bool) -> int:
    """List the installed backends, without loading torch.

    A plugin that cannot be used is listed, too, with the reason; `plugins doctor` says more.
    """
    from torchquilt.plugins.registry import backends

    found = backends()
    if as_json:
        write_json({"schema": JSON_SCHEMA, "backends": [_backend(backend) for backend in found]})
    else:
        _show_backends(found)
    return OK


@plugins.command()
@json_option
def doctor(as_json: bool) -> int:
    """Load every plugin completely, and say what is wrong and what to do.

    Exits with 1 when something is.
    """
    from torchquilt.plugins.diagnosis import diagnose

    told = diagnose()
    if as_json:
        write_json(
            {
                "schema": JSON_SCHEMA,
                "versions": told.versions,
                "variables": told.variables,
                "backends": [_backend(backend) for backend in told.backends],
                "findings": [attrs.asdict(finding) for finding in told.findings],
            }
        )
    else:
        _show_diagnosis(told)
    return NO if told.findings else OK


def _backend(backend: Backend) -> dict[str, Any]:
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
    }


def _show_backends(backends: Backends) -> None:
    if not backends:
        write(repr(backends))  # what could be installed
        return
    rows = [(b.name, b.distribution, b.version, b.status, b.remark) for b in backends]
    write_table([("name", "distribution", "version", "status", "remark"), *rows])


def _show_diagnosis(told: Diagnosis) -> None:
    versions = ", ".join(f"{name} {version or '(not installed)'}" for name, version in told.versions.items())
    write(f"versions: {versions}")
    for name, value in told.variables.items():
        write(f"{name}: {'not set' if value is None else repr(value)}")
    _show_backends(told.backends)
    for finding in told.findings:
        write(str(finding))
    write(f"{len(told.findings)} found" if told.findings else "nothing is wrong")
