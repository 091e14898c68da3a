"""A model on its way to XNNPACK's delegate, and what is looked at there."""

from __future__ import annotations

import attrs
import torch
from torch.fx import GraphModule

from plugins.lowered import Lowered, lower
from plugins.oracle import Model, outputs_of
from strategies import export, quantize
from torchquilt import QuantizationConfig
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config


@attrs.frozen(eq=False)
class Case:
    """A model on its way: the names of the patterns that were found in it, converted, lowered."""

    inputs: tuple[torch.Tensor, ...]
    patterns: frozenset[str]
    converted: GraphModule
    lowered: Lowered

    def differences(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each output of the converted model, and what the runtime makes of it."""
        expected = outputs_of(self.converted, self.inputs)
        return list(zip(expected, self.lowered.run(*self.inputs), strict=True))


def case_of(
    model: Model,
    *,
    is_dynamic: bool = False,
    is_per_channel: bool = True,
    config: QuantizationConfig | None = None,
) -> Case:
    """Quantize with min-max and lower."""
    config = config or get_symmetric_quantization_config(is_per_channel=is_per_channel, is_dynamic=is_dynamic)
    quantizer = XNNPACKQuantizer().set_global(config)
    claims = quantizer.claims(export(model.module, *model.inputs).module())
    converted = quantize(model.module, quantizer, *model.inputs)
    patterns = frozenset(claim.row.pattern.name for claim in claims)
    return Case(model.inputs, patterns, converted, lower(converted, *model.inputs))


def in_float(kernel: str) -> bool:
    """Whether a kernel of the delegate reads float, or writes it without having read dynamic integers."""
    read, written = kernel.split(" -> ")
    if kernel == "StaticTranspose(fp32) -> fp32":  # images as dynamic kernels read and write them
        return False
    return "fp" in read or ("fp" in written and "qd" not in read)


def largest_step(converted: GraphModule) -> float:
    """The largest quantization step of the outputs."""
    (output,) = (node for node in converted.graph.nodes if node.op == "output")
    assert all("dequantize_per_tensor" in str(node.target) for node in output.all_input_nodes)
    return max(float(node.args[1]) for node in output.all_input_nodes)
