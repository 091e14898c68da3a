"""Additions in front of a LayerNormalization, in a form that the runtime does not fuse with it.

ONNX Runtime makes one SkipLayerNormalization of both. Its CPU kernel took 490 µs for 128 tokens of 768
numbers where the two kernels take 85 µs (1.32, on a processor with AVX512): an eighth of an int8 BERT's time.
A Sum of two tensors is the same addition, and no fusion looks for one.
"""

from __future__ import annotations

from onnxscript import ir

from torchquilt_onnxruntime.graphs import array_of, graphs_of, readers


def write_sums(model: ir.Model) -> None:
    """Write as Sum each addition of two float32 tensors that only a LayerNormalization reads."""
    for graph in graphs_of(model):
        for node in graph:
            if node.op_type == "Add" and not node.domain and _is_fused(node):
                node.op_type = "Sum"


def _is_fused(node: ir.Node) -> bool:
    """Whether the runtime would make a SkipLayerNormalization of an addition and what reads it."""
    result = node.outputs[0]
    if result.dtype is not ir.DataType.FLOAT or result.is_graph_output():
        return False  # there is no Sum of float16
    if any(array_of(value) is not None for value in node.inputs):
        return False  # a bias, which other fusions take
    return [reader.op_type for reader in readers(result)] == ["LayerNormalization"]
