"""Two sides that quantize the same float model, and one way to look at what either of them made.

The oracle is torchao's ``prepare_pt2e`` and ``convert_pt2e`` with ExecuTorch's own ``XNNPACKQuantizer``.
A converted graph is described by its computing nodes in order, each with the chain of quantize and
dequantize operators that stands between it and what it reads. Names of nodes and of stored tensors do not
come into it, values of stored tensors do.
"""

from __future__ import annotations

import copy
import operator
import re
from collections import Counter
from typing import Any, ClassVar

import attrs
import torch
from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as executorch_quantizer
from torch import nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree
from torchao.quantization.pt2e import quantize_pt2e as torchao_flow
from torchao.quantization.pt2e.observer import MinMaxObserver

import torchquilt as tq
from strategies import export
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

_DIALECT = "quantized_decomposed."
#: Finds parameters at run time; its results reach the quantize and dequantize nodes through ``getitem``.
_CHOOSE = "quantized_decomposed.choose_qparams"
_SMALLEST_SCALE = 2**-12


@attrs.frozen(eq=False)
class Model:
    """A float model, and inputs that it is exported, calibrated and run with."""

    module: nn.Module
    inputs: tuple[torch.Tensor, ...]


class OracleQuantizer(executorch_quantizer.XNNPACKQuantizer):  # type: ignore[misc]
    """ExecuTorch's quantizer without its four patterns for BatchNorm in training.

    They are for quantization-aware training and match nothing here, where BatchNorm has been folded, but
    looking for them takes 1.5 seconds a model. A test holds that leaving them out changes nothing.
    """

    SUPPORTED_PATTERNS: ClassVar[list[Any]] = [
        pattern
        for pattern in executorch_quantizer.XNNPACKQuantizer.SUPPORTED_PATTERNS
        if not pattern.name.endswith(("_bn", "_bn_relu"))
    ]


def oracle_config(*, is_per_channel: bool = True, is_dynamic: bool = False) -> Any:
    """ExecuTorch's own config, except that static activations are min-max instead of histogram."""
    config = copy.deepcopy(
        executorch_quantizer.get_symmetric_quantization_config(
            is_per_channel=is_per_channel, is_dynamic=is_dynamic
        )
    )
    for spec in (config.input_activation, config.output_activation):
        if spec is not None and not is_dynamic:
            min_max = MinMaxObserver.with_args(eps=_SMALLEST_SCALE)
            object.__setattr__(spec, "observer_or_fake_quant_ctr", min_max)
    return config


def oracle_quantizer(*, is_per_channel: bool = True, is_dynamic: bool = False) -> Any:
    """The oracle, asked for its config everywhere."""
    config = oracle_config(is_per_channel=is_per_channel, is_dynamic=is_dynamic)
    return OracleQuantizer().set_global(config)


def our_config(*, is_per_channel: bool = True, is_dynamic: bool = False) -> tq.QuantizationConfig:
    """Ours with the same numbers, the oracle's lower bound of scales among them (see test_scales)."""
    ours = get_symmetric_quantization_config(is_per_channel=is_per_channel, is_dynamic=is_dynamic)
    specs = {role: ours.spec(role) for role in ("input_activation", "output_activation", "weight")}
    return tq.QuantizationConfig(
        **{role: spec and attrs.evolve(spec, eps=_SMALLEST_SCALE) for role, spec in specs.items()}
    )


def our_quantizer(*, is_per_channel: bool = True, is_dynamic: bool = False) -> XNNPACKQuantizer:
    """Ours, asked for the same."""
    config = our_config(is_per_channel=is_per_channel, is_dynamic=is_dynamic)
    return XNNPACKQuantizer().set_global(config)


def quantized_by_oracle(model: Model, quantizer: Any) -> GraphModule:
    """The model after torchao's flow, calibrated with its inputs.

    With weights that ask for gradients torch multiplies in another order; ours do not ask for any.
    """
    exported = export(model.module.requires_grad_(False), *model.inputs)
    prepared = torchao_flow.prepare_pt2e(exported.module(), quantizer)
    prepared(*model.inputs)
    converted: GraphModule = torchao_flow.convert_pt2e(prepared)
    return converted


def quantized_by_us(model: Model, quantizer: Any) -> GraphModule:
    """The model after our flow, calibrated with its inputs, min-max; also where nothing is quantized."""
    prepared = tq.prepare_pt2e(
        export(model.module, *model.inputs), quantizer, activation_observer="minmax", strict=False
    )
    return tq.convert_pt2e(tq.calibrate(prepared, [model.inputs]))


def outputs_of(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Outputs of a model, as a flat list."""
    with torch.no_grad():
        return list(pytree.tree_leaves(model(*inputs)))


def are_bit_equal(left: GraphModule, right: GraphModule, inputs: tuple[torch.Tensor, ...]) -> bool:
    """Whether two models return the same tensors, to the last bit."""
    pairs = zip(outputs_of(left, inputs), outputs_of(right, inputs), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def describe(model: GraphModule) -> list[str]:
    """The computing nodes of a converted graph in order, one line each, inputs and outputs among them."""
    return _Description(model).lines()


def per_token(line: str) -> str:
    """A line of the oracle's description with its dynamic steps per token instead of per tensor."""
    tensor = "choose_qparams.tensor[0], choose_qparams.tensor[1], -128, 127, torch.int8"
    token = tensor.replace("choose_qparams.tensor", "choose_qparams_per_token_asymmetric.default")
    line = line.replace(
        f"dequantize_per_tensor.tensor({tensor})", f"dequantize_per_token.default({token}, torch.float32)"
    )
    return line.replace(f"quantize_per_tensor.tensor({tensor})", f"quantize_per_token.default({token})")


def functional(line: str) -> str:
    """A line of a description with an operator that does not write in place."""
    return re.sub(r"^(aten\.\w+)_\.", r"\1.", line)


def steps_of(model: GraphModule) -> Counter[str]:
    """Number of quantize and dequantize nodes, by operator and parameters."""
    description = _Description(model)
    return Counter(description.step(node) for node in model.graph.nodes if _is_step(node))


@attrs.frozen
class Call:
    """One computing node of a converted graph, or its output.

    Args:
        name: short name of the operator, or ``output``.
        reads: for each tensor that it reads, whether that has been quantized.
        sources: for each of them, the number of the call that computed it; None for an input or a constant.
    """

    name: str
    reads: tuple[bool, ...]
    sources: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.name}({', '.join('q' if quantized else '-' for quantized in self.reads)})"


def calls_of(model: GraphModule) -> list[Call]:
    """Operators of a converted graph, in order, without those that quantize and dequantize."""
    numbers: dict[Node, int] = {}
    found = []
    for node in model.graph.nodes:
        if node.op == "output" or (node.op == "call_function" and not _is_machinery(node)):
            numbers[node] = len(found)
            tensors = _tensors(node)
            sources = tuple(numbers.get(_origin(tensor)) for tensor in tensors)
            found.append(Call(_short_name(node), tuple(map(_is_step, tensors)), sources))
    return found


def outline(model: GraphModule) -> list[str]:
    """The operators of a converted graph in order, and which of the tensors that they read are quantized.

    ``conv2d(q, q, -)``: input and weight are, the bias is read as it is.
    """
    return [str(call) for call in calls_of(model)]


class _Description:
    def __init__(self, model: GraphModule) -> None:
        self.model = model
        self.numbers: dict[Node, int] = {}

    def lines(self) -> list[str]:
        found = []
        for node in self.model.graph.nodes:
            if node.op in ("get_attr", "call_module") or _is_machinery(node):
                continue  # the only call of a module is the check of the inputs that export adds
            self.numbers[node] = len(self.numbers)
            arguments = [self._argument(value) for value in node.args]
            arguments += [f"{key}={self._argument(value)}" for key, value in node.kwargs.items()]
            name = str(node.target) if node.op == "call_function" else node.op
            found.append(f"{name}({', '.join(arguments)}) -> %{self.numbers[node]}")
        return found

    def _argument(self, value: Any) -> str:
        if isinstance(value, Node):
            return self._source(value)
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(self._argument, value))}]"
        return repr(value)

    def _source(self, node: Node) -> str:
        """The node that is read: the producer, and behind it each step on the way from there."""
        steps: list[str] = []
        while _is_step(node):
            steps.insert(0, self.step(node))
            node = node.all_input_nodes[0]
        origin = self._constant(node) if node.op == "get_attr" else f"%{self.numbers[node]}"
        return " | ".join([origin, *steps])

    def step(self, node: Node) -> str:
        """A quantize or dequantize node by operator and parameters, without the tensor."""
        operation = str(node.target).removeprefix(_DIALECT)
        return f"{operation}({', '.join(map(self._parameter, node.args[1:]))})"

    def _parameter(self, value: Any) -> str:
        if not isinstance(value, Node):
            return repr(value)
        if value.op == "get_attr":
            return self._constant(value)
        choose, index = value.args
        assert isinstance(choose, Node)
        return f"{str(choose.target).removeprefix(_DIALECT)}[{index}]"

    def _constant(self, node: Node) -> str:
        tensor: Any = self.model
        for part in str(node.target).split("."):
            tensor = getattr(tensor, part)
        return f"{str(tensor.dtype).removeprefix('torch.')}{tensor.detach().tolist()}"


def _origin(node: Node) -> Node:
    """The node whose value has been quantized and dequantized."""
    while _is_step(node):
        node = node.all_input_nodes[0]
    return node


def _short_name(node: Node) -> str:
    """``conv2d`` for ``aten.conv2d.default``, ``getitem`` for the function of Python."""
    if node.op == "output":
        return "output"
    return str(node.target).split(".")[1] if isinstance(node.target, OpOverload) else node.target.__name__


def _is_step(node: Node) -> bool:
    name = str(node.target)
    return name.startswith(_DIALECT) and not name.startswith(_CHOOSE)


def _is_machinery(node: Node) -> bool:
    """Whether a node quantizes, dequantizes, finds parameters at run time, or takes them out of a tuple."""
    source = node.args[0] if node.target is operator.getitem else node
    return _is_step(node) or str(getattr(source, "target", "")).startswith(_CHOOSE)


def _tensors(node: Node) -> list[Node]:
    """The nodes that a node reads, one that is read twice twice."""
    return [value for value in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(value, Node)]
