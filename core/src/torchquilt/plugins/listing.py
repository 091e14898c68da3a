"""Listing of the plugins: those that are published, and a record of each one that is installed.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import attrs

from torchquilt.plugins.manifest import Manifest, Requirement

Status = Literal["ok", "broken", "incompatible", "duplicate", "disabled"]
Stage = Literal["metadata", "import", "hook", "manifest", "api"]
Kind = Literal["backend", "target", "bridge"]


@attrs.frozen
class KnownPlugin:
    """A plugin that the project publishes, so that asking for it can be answered before it is installed.

    Args:
        name, distribution: of its entry point, and of the package that has it.
        summary: what it is for, in a few words.
        kind: ``backend`` (it has a quantizer), ``target`` (models are lowered to it), or ``bridge`` (it makes
            quantizers of those of another package).
        wraps: that package, of a bridge.
    """

    name: str
    distribution: str
    summary: str
    kind: Kind = "backend"
    wraps: str = ""


KNOWN = (
    KnownPlugin("executorch", "torchquilt-executorch", "programs for the runtime of ExecuTorch", "target"),
    KnownPlugin("executorch_embedding", "torchquilt-executorch-embedding", "8-bit embedding tables"),
    KnownPlugin("onnxruntime", "torchquilt-onnxruntime", "programs for ONNX Runtime", "target"),
    KnownPlugin("openvino", "torchquilt-openvino", "8-bit models on CPUs, and OpenVINO's runtime", "target"),
    KnownPlugin("inductor_x86", "torchquilt-inductor-x86", "8-bit models as AOTInductor packages", "target"),
    KnownPlugin("torchao", "torchquilt-torchao", "quantizers written for torchao", "bridge", "torchao"),
    KnownPlugin("xnnpack", "torchquilt-xnnpack", "8-bit convolutional and linear models on CPUs"),
)


@attrs.frozen
class Backend:
    """Record of one installed plugin.

    Args:
        name: what :func:`torchquilt.quantizer` or :func:`torchquilt.lower` knows it by.
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
    def is_backend(self) -> bool:
        """Whether it has a quantizer, or may have one: what does not say what it is counts as a backend."""
        return self.manifest is None or self.manifest.quantizer is not None

    @property
    def is_target(self) -> bool:
        """Whether models can be lowered to it."""
        return self.manifest is not None and self.manifest.target is not None

    @property
    def is_bridge(self) -> bool:
        """Whether it makes quantizers of those of another package."""
        return self.manifest is not None and bool(self.manifest.wraps)

    @property
    def remark(self) -> str:
        """One line for listings: the summary of a backend that works, the trouble of one that does not."""
        if self.error is None:
            return self.manifest.summary if self.manifest else ""
        line = self.error.partition("\n")[0]
        return f"{self.stage}: {line}" if self.stage else line


@attrs.frozen
class ForeignBackend:
    """Record of a quantizer of another package, which a bridge makes usable.

    It is made and configured as its vendor says, and composed as it is; :func:`torchquilt.quantizer` makes
    none.

    Args:
        name: for listings.
        summary: one line that says for what it quantizes.
        bridge: name of the plugin that is the bridge to it.
        quantizer: where its class is, as ``"package.module:Class"``.
        distribution: the package that it is in.
        version: the installed version of that package, None where it is not installed.
        missing: what it lacks here besides that package.
    """

    name: str
    summary: str
    bridge: str
    quantizer: str
    distribution: str
    version: str | None
    missing: tuple[Requirement, ...] = ()

    @property
    def status(self) -> Literal["ok", "quantizes", "missing"]:
        """``ok``; ``quantizes`` where only what lowering takes is missing; ``missing`` otherwise."""
        if self.version is None or any(not need.to_lower for need in self.missing):
            return "missing"
        return "quantizes" if self.missing else "ok"

    @property
    def remark(self) -> str:
        """One line for listings: what is missing, and how to get it; the summary where nothing is."""
        needs = [f"{need.name}{' to lower' * need.to_lower}: {need.get}" for need in self.missing]
        if self.version is None:
            needs.insert(0, f"{self.distribution}: pip install {self.distribution}")
        return f"needs {'; '.join(needs)}" if needs else self.summary


class Backends(tuple[Backend, ...]):
    """The installed backends in the order of their names: a tuple that prints as a table.

    Args:
        records: the backends.
        foreign: the quantizers of other packages that installed bridges make usable. They are printed below
            the backends, and no members of the tuple: each is made as its vendor says.
    """

    foreign: tuple[ForeignBackend, ...]

    def __new__(cls, records: Iterable[Backend] = (), foreign: Iterable[ForeignBackend] = ()) -> Backends:
        """A tuple of records, with those of foreign quantizers beside it."""
        made = super().__new__(cls, records)
        made.foreign = tuple(foreign)
        return made

    def __repr__(self) -> str:
        lines = _table([(b.name, b.distribution, b.version, b.status, b.remark) for b in self])
        if not self:
            lines = ["No backend is installed. These are published:"]
            lines += [f"  pip install {known.distribution}  ({known.summary})" for known in KNOWN]
        if self.foreign:
            rows = [(f.name, f.distribution, f.version or "–", f.status, f.remark) for f in self.foreign]
            lines += ["", "quantizers of other packages, made as their vendors say:", *_table(rows)]
        return "\n".join(lines)


def _table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """The lines of a table."""
    lines = [("name", "distribution", "version", "status", ""), *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
