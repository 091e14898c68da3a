"""The quantized side: the quantizer of each row of the table, and torchquilt's flow with a clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx
from torch.export import ExportedProgram

import torchquilt as tq
from encoder import Batch
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

COMPOSED = "composed"


def embedding_quantizer() -> ExecuTorchEmbeddingQuantizer:
    """Embedding tables as 8-bit integers, one scale a row."""
    return ExecuTorchEmbeddingQuantizer()


def xnnpack_quantizer() -> XNNPACKQuantizer:
    """Linears with int8 weights, one scale an output channel; their inputs are quantized as they arrive.

    The ranges of the inputs are thus found when the model runs, and calibration has nothing to measure.
    """
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    return XNNPACKQuantizer().set_global(config)


def composed_quantizer() -> tq.ComposableQuantizer:
    """Both: each node goes to the first that knows what to do with it."""
    return tq.ComposableQuantizer([embedding_quantizer(), xnnpack_quantizer()])


def static_quantizer() -> tq.ComposableQuantizer:
    """Both, with activations in ranges that calibration finds: every operator of XNNPACK, not only linears.

    For a text encoder the dynamic one is the better choice; this is what a device without it has to do.
    """
    config = get_symmetric_quantization_config(is_per_channel=True)
    return tq.ComposableQuantizer([embedding_quantizer(), XNNPACKQuantizer().set_global(config)])


VARIANTS: dict[str, Callable[[], tq.Quantizer]] = {
    "embedding only": embedding_quantizer,
    "XNNPACK only": xnnpack_quantizer,
    "static": static_quantizer,
    COMPOSED: composed_quantizer,
}


@dataclass(frozen=True)
class Seconds:
    """Seconds that each step of the flow took."""

    prepare: float
    calibrate: float
    convert: float


@dataclass(frozen=True)
class Quantized:
    """A converted model and what it took to make it."""

    model: fx.GraphModule
    seconds: Seconds


@dataclass(frozen=True)
class Coverage:
    """Number of operators that hold the weights and compute on quantized values."""

    linears: int
    linears_quantized: int
    embeddings: int
    embeddings_quantized: int

    def __str__(self) -> str:
        return (
            f"{self.linears_quantized} of {self.linears} linears "
            f"and {self.embeddings_quantized} of {self.embeddings} embeddings quantized"
        )

    @property
    def is_complete(self) -> bool:
        """Whether nothing that could be quantized stayed float."""
        return self.linears_quantized == self.linears and self.embeddings_quantized == self.embeddings


def quantize(exported: ExportedProgram, quantizer: tq.Quantizer, batches: list[Batch]) -> Quantized:
    """Prepare, calibrate on ``batches`` and convert; ``exported`` stays as it is."""
    started = time.perf_counter()
    prepared = tq.prepare_pt2e(exported, quantizer)
    was_prepared = time.perf_counter()
    tq.calibrate(prepared, batches)
    was_calibrated = time.perf_counter()
    model = tq.convert_pt2e(prepared)
    was_converted = time.perf_counter()
    return Quantized(
        model,
        Seconds(was_prepared - started, was_calibrated - was_prepared, was_converted - was_calibrated),
    )


def coverage(model: fx.GraphModule) -> Coverage:
    """Count what the graph itself says: an operator is quantized if it reads dequantized integers."""
    linears = [node for node in model.graph.nodes if node.target is torch.ops.aten.linear.default]
    embeddings = [node for node in model.graph.nodes if node.target is torch.ops.aten.embedding.default]
    return Coverage(
        linears=len(linears),
        linears_quantized=sum(all(map(_is_dequantized, node.args[:2])) for node in linears),
        embeddings=len(embeddings),
        embeddings_quantized=sum(_is_dequantized(node.args[0]) for node in embeddings),
    )


def _is_dequantized(value: object) -> bool:
    return (
        isinstance(value, fx.Node)
        and isinstance(value.target, torch._ops.OpOverload)
        and value.target.namespace == "quantized_decomposed"
        and value.target._opname.startswith("dequantize")
    )
