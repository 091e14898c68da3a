"""Times of kernels, from the profile that ONNX Runtime writes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchquilt.backend import KernelTime, RunTimes
from torchquilt_onnxruntime.runner import options, session

_MICRO = 1e-6
_KERNEL = "_kernel_time"
#: Nodes whose time is that of the nodes in their subgraphs.
_OUTER = frozenset({"If", "Loop", "Scan"})


def profiled(
    buffer: bytes,
    names: Sequence[str],
    inputs: Mapping[str, Any],
    runs: int,
    steps: Mapping[str, str],
    files: Mapping[str, bytes] | None = None,
) -> list[RunTimes]:
    """Run a program so many times, after a run that is not measured.

    Args:
        buffer: the file.
        names: of the outputs.
        inputs: name → tensor of the runtime.
        runs: their number.
        steps: name of a kernel → the step that it belongs to.
        files: those beside the file, name → content.
    """
    with tempfile.TemporaryDirectory(prefix="torchquilt-") as folder:
        chosen = options()
        chosen.enable_profiling = True
        chosen.profile_file_prefix = str(Path(folder) / "profile")
        running = session(buffer, chosen, files)
        for _ in range(runs + 1):
            running.run_with_ort_values(list(names), dict(inputs))
        events = json.loads(Path(running.end_profiling()).read_text(encoding="utf-8"))
    return _runs(events, steps)[1:]


def _runs(events: Sequence[Mapping[str, Any]], steps: Mapping[str, str]) -> list[RunTimes]:
    """The kernels of each run, which lie within its event."""
    whole = [one for one in events if one.get("name") == "model_run"]
    kernels = [one for one in events if one.get("cat") == "Node" and str(one["name"]).endswith(_KERNEL)]
    kernels = [one for one in kernels if one["args"].get("op_name") not in _OUTER]
    return [
        RunTimes(
            run["dur"] * _MICRO,
            tuple(_time(one, steps) for one in kernels if run["ts"] <= one["ts"] <= run["ts"] + run["dur"]),
        )
        for run in sorted(whole, key=lambda one: int(one["ts"]))
    ]


def _time(event: Mapping[str, Any], steps: Mapping[str, str]) -> KernelTime:
    name = str(event["name"]).removesuffix(_KERNEL)
    return KernelTime(str(event["args"]["op_name"]), event["dur"] * _MICRO, steps.get(name, name))
