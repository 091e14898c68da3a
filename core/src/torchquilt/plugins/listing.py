"""Listing of the plugins: those that are published, and a record of each one that is installed.

Importing this module does not import torch.
"""

from __future__ import annotations

from typing import Literal

import attrs

from torchquilt.plugins.manifest import Manifest

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
