"""Compiling a model for the CPU of this machine, so that it computes what it says."""

from __future__ import annotations

from typing import Any

from torchquilt_openvino.loading import openvino

DEVICE = "CPU"


def compiled(model: Any, *, measured: bool = False) -> Any:
    """The model, ready to run.

    What stays in float is computed in float32, also on a processor that OpenVINO would choose bfloat16 on,
    and activations are not quantized when it runs where the model does not say so. It uses as many threads
    as torch does.

    Args:
        model: in OpenVINO's representation.
        measured: have each kernel measured.

    Raises:
        RuntimeError: OpenVINO cannot compile it.
    """
    import torch

    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
        "ENABLE_CPU_PINNING": "NO",
        "PERF_COUNT": "YES" if measured else "NO",
    }
    return openvino().Core().compile_model(model, DEVICE, options)
