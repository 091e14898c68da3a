"""Run what Arm's quantizer for Cortex-M quantized in our flow: its ``cortex_m::`` operators, eagerly.

Prints JSON: for each model its name, its operators of ``cortex_m``, how many others compute, and the largest
difference from the Q/DQ model in steps of the output.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch
from executorch.backends.cortex_m.edge_compile_config import cortex_m_edge_compile_config
from executorch.backends.cortex_m.passes.cortex_m_pass_manager import CortexMPassManager
from executorch.exir import to_edge
from torch.fx import GraphModule

from plugins.oracle import Model
from plugins.torchao.flows import by_torchquilt
from plugins.torchao.models import model_of
from plugins.torchao.vendors import OF_ARM

MODELS = ("perceptron", "residual", "pooled head", "shapes")


def channels_last(model: Model) -> Model:
    """A model in the memory format that the backend asks for."""
    layout = torch.channels_last
    inputs = (tensor.to(memory_format=layout) if tensor.dim() == 4 else tensor for tensor in model.inputs)
    return Model(model.module.to(memory_format=layout), tuple(inputs))


def with_kernels(model: GraphModule, inputs: tuple[torch.Tensor, ...]) -> Any:
    """The program that the backend's passes make of a converted model."""
    program = torch.export.export(model, inputs)
    edge = to_edge(program, compile_config=cortex_m_edge_compile_config())
    return CortexMPassManager(edge.exported_program()).transform()


def main() -> None:
    """Convert, lower and run each model."""
    warnings.simplefilter("ignore")
    found = []
    for name in MODELS:
        model = channels_last(model_of(name))
        quantized = by_torchquilt(model, OF_ARM["cortex_m"]())
        program = with_kernels(quantized, model.inputs)
        names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        kernels = sorted({each.split("cortex_m.")[1].split(".")[0] for each in names if "cortex_m." in each})
        others = [each for each in names if "cortex_m." not in each and "alloc" not in each]
        last = next(node for node in reversed(quantized.graph.nodes) if "dequantize" in node.name)
        difference = (program.module()(*model.inputs) - quantized(*model.inputs)).abs().max()
        found.append((name, kernels, len(others), float(difference / last.args[1])))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
