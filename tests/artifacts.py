"""Saved models, and what tests do to their files: open, change, forge and run them elsewhere."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from strategies import (
    normal,
    quantize,
)
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

LOCK = "extra/torchquilt.json"
PROGRAM = "models/model.json"


def xnnpack(**asked: bool) -> XNNPACKQuantizer:
    """XNNPACK everywhere, per channel."""
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, **asked))


def composed() -> tq.ComposableQuantizer:
    """Both backends."""
    return tq.ComposableQuantizer([ExecuTorchEmbeddingQuantizer(), xnnpack()])


class Linear(nn.Module):
    """One layer, with an input that has a name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores."""
        return self.fc(x)


class Tokens(nn.Module):
    """An embedding and a linear: one for each backend."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(64, 16)
        self.fc = nn.Linear(16, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Scores at each position."""
        return self.fc(self.tokens(ids))


X = normal(4, 16)
IDS = torch.arange(6).reshape(2, 3)
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], object], torch.Tensor]] = {
    "linear": (Linear, xnnpack, X),
    "conv": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), xnnpack, normal(2, 3, 8, 8)),
    "dynamic": (Linear, lambda: xnnpack(is_dynamic=True), X),
    "embedding and linear": (Tokens, composed, IDS),
}


def made(case: str) -> tuple[GraphModule, torch.Tensor]:
    """A quantized model and its input."""
    model, quantizer, inputs = CASES[case]
    return quantize(model(), quantizer(), inputs), inputs


def in_fresh_python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **environment},
    )


def entries_of(path: Path) -> dict[str, bytes]:
    """Name below the root folder → content."""
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write(path: Path, entries: dict[str, bytes]) -> Path:
    """An archive as torch.export.save writes it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(f"archive/{name}", content)
    return path


def sealed(lock: dict[str, Any]) -> bytes:
    """A lock with the digest that its content has: what anyone can make."""
    content = {name: value for name, value in lock.items() if name != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps({**content, "sha256": hashlib.sha256(text.encode()).hexdigest()}).encode()


def forge(path: Path, change: Callable[[dict[str, bytes]], Any]) -> Path:
    """A file with other entries and a lock that fits them, which is the best that a forger can do."""
    entries = entries_of(path)
    change(entries)
    lock = json.loads(entries[LOCK])
    lock["entries"] = [
        {"name": name, "nbytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in entries.items()
        if name != LOCK
    ]
    entries[LOCK] = sealed(lock)
    return write(path.with_name("forged.pt2"), entries)


def in_program(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, bytes]], None]:
    """A change of the JSON of the program."""

    def apply(entries: dict[str, bytes]) -> None:
        program = json.loads(entries[PROGRAM])
        entries[PROGRAM] = json.dumps(change(program) or program).encode()

    return apply


def change_lock(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The same file with another lock, which has the digest of its content."""
    entries = entries_of(path)
    lock = json.loads(entries[LOCK])
    change(lock)
    entries[LOCK] = sealed(lock)
    return write(path, entries)


class Bomb:
    """An object that writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


def pickled(value: object, **options: Any) -> bytes:
    """Bytes that torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()
