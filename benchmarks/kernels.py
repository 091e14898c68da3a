"""The least time of each kernel of a program, added up: what a program takes where nothing disturbs it.

Other work on the machine makes a whole run longer, and hardly ever misses one. A kernel is short, so that of
some runs one is undisturbed. Ours and others' programs are measured in the same way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def onnxruntime_seconds(file: Path, inputs: Sequence[Any], runs: int) -> float:
    """Seconds in kernels of a file of ONNX.

    Args:
        file: it.
        inputs: tensors, in the order of its inputs.
        runs: the least time of so many counts.
    """
    import onnxruntime

    from torchquilt_onnxruntime.profiling import profiled

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    values = map(onnxruntime.OrtValue.ortvalue_from_numpy, (one.numpy() for one in inputs))
    given = dict(zip((one.name for one in session.get_inputs()), values, strict=True))
    names = [one.name for one in session.get_outputs()]
    found = profiled(file.read_bytes(), names, given, runs, {})
    return _added_up((kernel.step, kernel.seconds) for run in found for kernel in run.kernels)


def openvino_seconds(model: Any, inputs: Sequence[Any], runs: int) -> float:
    """The same of a model of OpenVINO."""
    from torchquilt_openvino.compiling import compiled

    request = compiled(model, measured=True).create_infer_request()
    given = [one.numpy() for one in inputs]
    found: list[tuple[str, float]] = []
    for _ in range(runs + 1):
        request.infer(given)
        found += [(one.node_name, one.real_time.total_seconds()) for one in request.profiling_info]
    return _added_up(found)


def stored_openvino(buffer: bytes) -> Any:
    """The model of OpenVINO that a file of ours holds."""
    import numpy as np
    import openvino

    from torchquilt_openvino.stored import StoredProgram

    stored = StoredProgram.of(buffer)
    return openvino.Core().read_model(stored.xml, openvino.Tensor(np.frombuffer(buffer, np.uint8)))


def _added_up(times: Iterable[tuple[str, float]]) -> float:
    of_kernel: dict[str, list[float]] = defaultdict(list)
    for kernel, seconds in times:
        of_kernel[kernel].append(seconds)
    return sum(map(min, of_kernel.values()))
