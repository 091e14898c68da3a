"""Measuring for the benchmarks: time, memory, noise, and a description of the machine and the versions."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def timed(function: Callable[[], T], clock: Callable[[], float] = time.perf_counter) -> tuple[float, T]:
    """Seconds of a clock, and what the function returned."""
    gc.collect()
    start = clock()
    result = function()
    return clock() - start, result


def peak_of(function: Callable[[], object]) -> float:
    """MiB of the process at the peak while a function runs."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # lets VmHWM begin anew: proc(5)
    function()
    return _mebibytes("VmHWM")


def _mebibytes(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def signal_to_noise(expected: Iterable[torch.Tensor], found: Iterable[torch.Tensor]) -> float:
    """Signal to noise ratio of tensors against those that are expected, all together, in dB."""
    signal = noise = 0.0
    for wanted, got in zip(expected, found, strict=True):
        signal += float(wanted.double().square().sum())
        noise += float((wanted.double() - got.double()).square().sum())
    return math.inf if noise == 0 else 10 * math.log10(signal / noise)


def about(*packages: str, **settings: Any) -> dict[str, Any]:
    """Description of how figures are made: the command, versions, the machine, and settings.

    Args:
        *packages: whose versions are told, beside those of torch and Python.
        **settings: told as they are.
    """
    return {
        "command": shlex.join(["python", *_relative(sys.argv)]),
        **{name: metadata.version(name) for name in ("torch", *packages)},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **settings,
    }


def _relative(arguments: list[str]) -> list[str]:
    """The command with its file as it is called from the repository."""
    return [f"benchmarks/{Path(arguments[0]).name}", *arguments[1:]]


def _processor() -> str:
    """The name of the processor, as far as the system says it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
