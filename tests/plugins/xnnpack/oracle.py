"""Two sides that quantize the same float model, and one way to look at what either of them made.

The oracle is torchao's ``prepare_pt2e`` and ``convert_pt2e`` with ExecuTorch's own ``XNNPACKQuantizer``.
A converted graph is described by its computing nodes in order, each with the chain of quantize and
dequantize operators that stands between it and what it reads. Names of nodes and of stored tensors do not
come into it, values of stored tensors do.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs
import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer as ReferenceQuantizer,
)
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    get_symmetric_quantization_config as reference_config,
)
from torch import nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.observer import MinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e as reference_convert
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e as reference_prepare

import torchquilt as tq
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

#: Sources of parameters that are found at run time, whose results reach the q/dq nodes by ``getitem``.
_CHOOSE = "quantized_decomposed.choose_qparams"
_QUANTIZE = "quantized_decomposed."


class Calls(nn.Module):
    """A module around a function of itself and its inputs, for models that fit on a line."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(self, *inputs)


@attrs.frozen(eq=False)
class Model:
    """A float model, and inputs that it is exported, calibrated and run with."""

    module: nn.Module
    inputs: tuple[torch.Tensor, ...]

    def exported(self) -> torch.export.ExportedProgram:
        return torch.export.export(self.module.eval(), self.inputs)


def oracle_quantizer(*, is_per_channel: bool = True, is_dynamic: bool = False) -> Any:
    """ExecuTorch's quantizer with its own config, except that activations are min-max instead of histogram."""
    config = copy.deepcopy(reference_config(is_per_channel=is_per_channel, is_dynamic=is_dynamic))
    if not is_dynamic:
        min_max = MinMaxObserver.with_args(eps=2**-12)
        activation = _with_observer(config.input_activation, min_max)
        config = type(config)(activation, activation, config.weight, config.bias, config.is_qat)
    return ReferenceQuantizer().set_global(config)


def _with_observer(spec: Any, observer: Any) -> Any:
    changed = copy.deepcopy(spec)
    object.__setattr__(changed, "observer_or_fake_quant_ctr", observer)
    return changed


def our_quantizer(*, is_per_channel: bool = True, is_dynamic: bool = False) -> XNNPACKQuantizer:
    """Ours, asked for the same."""
    config = get_symmetric_quantization_config(is_per_channel=is_per_channel, is_dynamic=is_dynamic)
    return XNNPACKQuantizer().set_global(config)


def quantized_by_oracle(model: Model, quantizer: Any) -> GraphModule:
    """The model after torchao's flow, calibrated with its inputs."""
    prepared = reference_prepare(model.exported().module(), quantizer)
    prepared(*model.inputs)
    return reference_convert(prepared)


def quantized_by_us(model: Model, quantizer: Any) -> GraphModule:
    """The model after our flow, calibrated with its inputs, min-max."""
    prepared = tq.prepare_pt2e(model.exported(), quantizer, activation_observer="minmax")
    tq.calibrate(prepared, [model.inputs])
    return tq.convert_pt2e(prepared)


def outputs_of(model: GraphModule, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """What a model returns, as a flat list."""
    with torch.no_grad():
        return list(torch.utils._pytree.tree_leaves(model(*inputs)))


def describe(model: GraphModule) -> list[str]:
    """The computing nodes of a converted graph in order, one line each, inputs and outputs among them."""
    return _Description(model).lines()


def steps_of(model: GraphModule) -> Counter[str]:
    """How many quantize and dequantize nodes there are, by operator and parameters."""
    seen = _Description(model)
    return Counter(seen.step(node) for node in model.graph.nodes if _is_step(node))


def lines_with(description: list[str], operation: str) -> list[str]:
    """The lines of a description that are about one operator."""
    return [line for line in description if line.split("(")[0].endswith(operation)]


class _Description:
    def __init__(self, model: GraphModule) -> None:
        self.model = model
        self.numbers: dict[Node, int] = {}

    def lines(self) -> list[str]:
        found = []
        for node in self.model.graph.nodes:
            if node.op in ("get_attr", "call_module") or _is_step(node) or _serves_a_step(node):
                continue  # the only call of a module is the check of the inputs that export adds
            self.numbers[node] = len(self.numbers)
            arguments = ", ".join(self._argument(item) for item in (*node.args, *node.kwargs.items()))
            name = node.target if node.op == "call_function" else node.op
            found.append(f"{name}({arguments}) -> %{self.numbers[node]}")
        return found

    def _argument(self, value: Any) -> str:
        if isinstance(value, Node):
            return self._source(value)
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(self._argument(item) for item in value)}]"
        return repr(value)

    def _source(self, node: Node) -> str:
        """What a node reads: its producer, and behind it each step on the way."""
        steps = []
        while _is_step(node):
            steps.append(self.step(node))
            (node, *_) = node.all_input_nodes
        origin = self._constant(node) if node.op == "get_attr" else f"%{self.numbers[node]}"
        return " | ".join([origin, *reversed(steps)])

    def step(self, node: Node) -> str:
        """A quantize or dequantize node by operator and parameters, without the tensor."""
        operation = str(node.target).removeprefix(_QUANTIZE)
        return f"{operation}({', '.join(self._parameter(value) for value in node.args[1:])})"

    def _parameter(self, value: Any) -> str:
        if not isinstance(value, Node):
            return repr(value)
        if value.op == "get_attr":
            return self._constant(value)
        choose = value.args[0]
        assert isinstance(choose, Node)
        return f"{str(choose.target).removeprefix(_QUANTIZE)}[{value.args[1]}]"

    def _constant(self, node: Node) -> str:
        tensor = self.model
        for part in str(node.target).split("."):
            tensor = getattr(tensor, part)
        assert isinstance(tensor, torch.Tensor)
        return f"{str(tensor.dtype).removeprefix('torch.')}{tensor.detach().tolist()}"


def _is_step(node: Node) -> bool:
    name = str(node.target)
    return name.startswith(_QUANTIZE) and not name.startswith(_CHOOSE)


def _serves_a_step(node: Node) -> bool:
    if str(node.target).startswith(_CHOOSE):
        return True
    return node.target is operator.getitem and str(node.args[0].target).startswith(_CHOOSE)  # type: ignore[union-attr]
