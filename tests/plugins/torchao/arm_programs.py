"""Run what Arm's quantizers quantized in our flow: on the TOSA reference model, and compiled by Vela.

Prints JSON: for each model its name, the number of delegates, the operators outside of them and the largest
difference in steps on the reference model. For each accelerator: how many operators Vela says run on the NPU
and on the CPU, the operations of the NPU, and what the ledger says of each operator of the model.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import warnings
from typing import Any

import torch
import tosa_reference_model
from executorch.backends.arm.ethosu import EthosUCompileSpec
from executorch.backends.arm.tosa.compile_spec import TosaCompileSpec
from executorch.backends.arm.tosa.partitioner import TOSAPartitioner
from executorch.backends.arm.tosa.specification import TosaSpecification
from executorch.exir import to_edge_transform_and_lower

import torchquilt as tq
from plugins.torchao.flows import by_torchquilt
from plugins.torchao.models import model_of
from plugins.torchao.vendors import OF_ARM
from torchquilt_torchao import ethos_u

MODELS = ("residual", "pooled head", "perceptron")
#: The second as its compile spec, which says more.
ACCELERATORS = {"ethos-u55-128": "ethos-u55-128", "ethos-u85-256": EthosUCompileSpec("ethos-u85-256")}


def lowered(program: Any, partitioner: Any) -> tuple[list[Any], list[torch.fx.Node]]:
    """The delegates of a program, and the operators that stay outside, in order."""
    edge = to_edge_transform_and_lower(program, partitioner=[partitioner])
    module = edge.exported_program().graph_module
    delegates = [getattr(module, str(node.target)) for node in module.graph.nodes if node.op == "get_attr"]
    outside = [node for node in module.graph.nodes if node.op == "call_function"]
    return delegates, outside


def difference(outside: list[torch.fx.Node], delegate: Any, inputs: Any, expected: torch.Tensor) -> float:
    """Largest difference between the reference model and the Q/DQ model, in steps of the output."""
    quantize, dequantize = outside[0], outside[-1]
    scale, zero_point, low, high, dtype = quantize.args[1:6]
    operators = torch.ops.quantized_decomposed
    integers = operators.quantize_per_tensor(inputs[0], scale, zero_point, low, high, dtype)
    found, status = tosa_reference_model.run(delegate.processed_bytes, [integers.numpy()], verbosity="LOW")
    assert status == tosa_reference_model.GraphStatus.TOSA_VALID
    scale, zero_point = dequantize.args[1:3]
    result = (torch.from_numpy(found[0]).float() - zero_point) * scale
    return float((result - expected).abs().max() / scale)


def operators_on(processor: str, summary: str) -> int:
    """Operators on one processor, as Vela's summaries of all delegates count them."""
    counts = re.findall(rf"{processor} operators = (\d+)", summary)
    assert counts, "Vela told nothing"
    return sum(map(int, counts))


def compiled(model: Any, accelerator: Any) -> Any:
    """Facts that Vela and the ledger tell of a model that is lowered for an NPU."""
    quantized = by_torchquilt(model, OF_ARM["arm_ethosu"]())
    with contextlib.redirect_stdout(io.StringIO()) as told:
        program = tq.lower(
            quantized, model.inputs, target="executorch", backends={"arm_ethosu": ethos_u(accelerator)}
        )
    assert program.ledger is not None
    counts = [operators_on(processor, told.getvalue()) for processor in ("NPU", "CPU")]
    rows = [(row.op, row.lowered.code, row.lowered.text) for row in program.ledger.rows if row.lowered]
    return *counts, [*map(str, program.kernels)], rows, str(program.verification)


def main() -> None:
    """Lower, run and compile each model."""
    warnings.simplefilter("ignore")
    found = []
    for name in MODELS:
        model = model_of(name)
        tosa = by_torchquilt(model, OF_ARM["arm_tosa"]())
        spec = TosaCompileSpec(TosaSpecification.create_from_string("TOSA-1.0+INT"))
        delegates, outside = lowered(torch.export.export(tosa, model.inputs), TOSAPartitioner(spec))
        others = [node.name for node in outside if "quantize_per_tensor" not in str(node.target)]
        with torch.no_grad():
            steps = difference(outside, delegates[0], model.inputs, tosa(*model.inputs))
        npus = {one: compiled(model, accelerator) for one, accelerator in ACCELERATORS.items()}
        found.append((name, len(delegates), others, steps, npus))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
