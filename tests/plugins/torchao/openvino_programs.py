"""Run what OpenVINO's own quantizer quantized in our flow: in ExecuTorch's delegate for OpenVINO.

Prints JSON: for each model its name, the number of delegates, the operators outside of them, and decibels of
what the runtime computes beside the Q/DQ model.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch
from executorch.backends.openvino.partitioner import OpenvinoPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.exir.backend.backend_details import CompileSpec
from executorch.runtime import Runtime

from plugins.torchao.flows import by_torchquilt
from plugins.torchao.models import model_of
from plugins.torchao.vendors import VENDORS
from strategies import sqnr

# Tokens are no input of it: of an embedding in float the delegate makes something else (7.8 dB).
MODELS = ("perceptron", "residual", "attention", "shapes")


def row_of(name: str) -> list[Any]:
    """Row of one model: name, delegates, operators outside, decibels."""
    model = model_of(name)
    # The delegate reads weights in float, with the operators that quantize them.
    quantized = by_torchquilt(model, VENDORS["openvino_nncf"](), fold_quantize=False)
    program = torch.export.export(quantized, model.inputs)
    partitioner = OpenvinoPartitioner([CompileSpec("device", b"CPU")])
    edge = to_edge_transform_and_lower(program, partitioner=[partitioner])
    nodes = edge.exported_program().graph_module.graph.nodes
    delegates = sum(node.op == "get_attr" for node in nodes)
    outside = [node.name.partition("_")[0] for node in nodes if node.op == "call_function"]
    method = Runtime.get().load_program(edge.to_executorch().buffer).load_method("forward")
    with torch.no_grad():
        expected = quantized(*model.inputs)
    return [name, delegates, outside, sqnr(expected, method.execute(list(model.inputs))[0])]


def main() -> None:
    """Lower and run each model."""
    warnings.simplefilter("ignore")
    json.dump([row_of(name) for name in MODELS], sys.stdout)


if __name__ == "__main__":
    main()
