"""Changes of strides alone, which torch writes as a Gather of all elements in their order.

ONNX has no strides. torch's mean over a ``channels_last`` image ends with such a change, and the runtime
averages integers only where nothing stands between the mean and its QuantizeLinear.
"""

from __future__ import annotations

import numpy as np
from onnxscript import ir

from torchquilt_onnxruntime.graphs import array_of, erase, graphs_of, present, readers


def drop_changes_of_strides(model: ir.Model) -> None:
    """Let the readers of such a Gather read the tensor itself."""
    for graph in graphs_of(model):
        for node in list(graph):
            reshape = _flattening(node)
            if reshape is not None and not node.outputs[0].is_graph_output():
                node.outputs[0].replace_all_uses_with(present(reshape.inputs[0]))
                erase(node)
                if not readers(reshape.outputs[0]):
                    erase(reshape)


def _flattening(gather: ir.Node) -> ir.Node | None:
    """The Reshape in front of a Gather that returns the elements as they are; None for other nodes."""
    if gather.op_type != "Gather" or gather.domain or gather.inputs[0] is None:
        return None
    reshape, index = gather.inputs[0].producer(), array_of(gather.inputs[1])
    if index is None or reshape is None or reshape.op_type != "Reshape" or reshape.domain:
        return None
    source, sizes = reshape.inputs[0], array_of(reshape.inputs[1])
    if source is None or source.shape is None or sizes is None or sizes.tolist() != [-1]:
        return None
    is_same = list(source.shape) == list(index.shape)
    return reshape if is_same and np.array_equal(index.reshape(-1), np.arange(index.size)) else None
