"""Strategies and models that several test files draw or build.

Small exported models, quantizers made of a function, specs, data, and random graphs for the whole flow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs
import torch
from hypothesis import strategies as st
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

import control_flow
import torchquilt as tq
from torchquilt.graph.edits import copy_model

# ----------------------------------------------------------------------------------------------------------
# Models, and the steps that nearly every test takes with them
# ----------------------------------------------------------------------------------------------------------


class Fn(nn.Module):
    """A function of tensors as a module, with the modules and tensors that it uses as attributes."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *args: Any) -> Any:
        """Call the function with this module first."""
        return self.function(self, *args)


def name_of(value: object) -> str:
    """A name for a test's parameter that is the same in every process (no addresses in it)."""
    return str(getattr(value, "__name__", value))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers, the same for the same shape and seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def export(model: nn.Module, *inputs: Any, **options: Any) -> ExportedProgram:
    """Export in evaluation mode."""
    return torch.export.export(model.eval(), inputs, **options)


def prepare(model: nn.Module, quantizer: object, *inputs: Any, observer: Any = "minmax") -> GraphModule:
    """Export and prepare."""
    return tq.prepare_pt2e(export(model, *inputs), quantizer, activation_observer=observer)


def quantize(model: nn.Module, quantizer: object, *inputs: Any, observer: Any = "minmax") -> GraphModule:
    """Export, prepare, calibrate with these very inputs, convert."""
    return tq.convert_pt2e(
        tq.calibrate(prepare(model, quantizer, *inputs, observer=observer), [tuple(inputs)])
    )


def calls(model: GraphModule, part: str = "") -> list[Node]:
    """The operator calls whose overload has ``part`` in its name, in graph order."""
    return [n for n in model.graph.nodes if n.op == "call_function" and part in str(n.target)]


def one_call(model: GraphModule, part: str) -> Node:
    """The only call of an operator."""
    (found,) = calls(model, part)
    return found


def integer_outputs(model: GraphModule) -> GraphModule:
    """A copy of a converted model that returns the integers behind its dequantized outputs.

    Every output has to be dequantized right before it is returned, so that none is float by mistake.
    """
    model = copy_model(model)
    (output,) = (node for node in model.graph.nodes if node.op == "output")
    for node in output.all_input_nodes:
        assert "dequantize" in str(node.target), f"{node} is float"
        output.replace_input_with(node, node.args[0])
        if not node.users:
            model.graph.erase_node(node)
    model.recompile()
    return model


def annotated(model: GraphModule) -> dict[str, tq.QuantizationAnnotation]:
    """Node name → annotation."""
    pairs = ((node.name, tq.annotation_of(node)) for node in model.graph.nodes)
    return {name: annotation for name, annotation in pairs if annotation is not None}


def decisions(model: GraphModule) -> dict[str, tuple[Any, ...]]:
    """The annotations of a graph as plain values, with names instead of nodes, so that graphs compare."""

    def plain(value: Any) -> Any:
        if isinstance(value, tq.SharedQuantizationSpec):
            return ("shared", plain(value.edge_or_node))
        if isinstance(value, tuple):
            return tuple(map(plain, value))
        return value.name if isinstance(value, Node) else value

    return {
        name: (
            {plain(node): plain(spec) for node, spec in found.input_qspec_map.items()},
            plain(found.output_qspec),
            found.allow_implicit_sharing,
            found.quantizer,
            found.pattern,
        )
        for name, found in annotated(model).items()
    }


def sqnr(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Signal to quantization noise ratio in dB: 20 is noise of a tenth of the signal's norm."""
    reference = reference.detach()
    noise = float((reference - other.detach()).norm())
    return math.inf if noise == 0 else 20 * math.log10(max(float(reference.norm()), 1e-30) / noise)


class ByFunction(tq.Quantizer):
    """Annotates each free node with what a function answers for it; None is "not this one"."""

    def __init__(
        self, decide: Callable[[Node], tq.QuantizationAnnotation | None], name: str = "by_function"
    ) -> None:
        self.decide = decide
        self._name = name

    @property
    def name(self) -> str:
        """The name that was given."""
        return self._name

    def annotate(self, model: GraphModule) -> GraphModule:
        """Ask the function about every node that is free."""
        for node in list(model.graph.nodes):
            found = self.decide(node) if tq.annotation_of(node) is None else None
            if found is not None:
                tq.annotate_node(node, found)
        return model


class Transforming(tq.Quantizer):
    """Transforms a model as a test wants, and annotates nothing."""

    def __init__(self, transform: Callable[[GraphModule], Any]) -> None:
        self.transform = transform

    def transform_for_annotation(self, model: GraphModule) -> Any:
        """Return what the test's function returns."""
        return self.transform(model)

    def annotate(self, model: GraphModule) -> GraphModule:
        """Leave all in float."""
        return model


class Nothing(tq.Quantizer):
    """Annotates nothing."""

    def annotate(self, model: GraphModule) -> GraphModule:
        """Leave all in float."""
        return model


INT8 = tq.QuantizationSpec("int8")
WEIGHT = tq.QuantizationSpec("int8", -127, 127, "per_axis", ch_axis=0, symmetric=True)


def outputs_of(*parts: str, spec: Any = INT8, name: str = "by_function") -> ByFunction:
    """A quantizer of the outputs of all operators whose overload has one of these parts in its name."""

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        meant = node.op == "call_function" and any(part in str(node.target) for part in parts)
        return tq.QuantizationAnnotation({}, spec, quantizer=name) if meant else None

    return ByFunction(decide, name)


def weights_of(part: str, spec: Any = WEIGHT, name: str = "weights", position: int = 1) -> ByFunction:
    """A quantizer of the weights, nothing else, of operators with this part in their name."""

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        if node.op != "call_function" or part not in str(node.target):
            return None
        return tq.QuantizationAnnotation({node.args[position]: spec}, quantizer=name)

    return ByFunction(decide, name)


# ----------------------------------------------------------------------------------------------------------
# Specs and data
# ----------------------------------------------------------------------------------------------------------

_RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-(2**15), 2**15 - 1), "uint16": (0, 2**16 - 1)}


@st.composite
def specs(draw: st.DrawFn, granularities: tuple[str, ...] = ("per_tensor",)) -> tq.QuantizationSpec:
    """Static specs that make sense: integer types of up to 16 bits, any part of the range, any symmetry."""
    granularity = draw(st.sampled_from(granularities))
    # torch's operators take uint16 per tensor only, and such specs are refused.
    dtype = draw(
        st.sampled_from(sorted(set(_RANGES) - ({"uint16"} if granularity != "per_tensor" else set())))
    )
    lowest, highest = _RANGES[dtype]
    symmetric = draw(st.booleans())
    if symmetric and lowest < 0:
        low, high = draw(st.integers(lowest, -1)), draw(st.integers(1, highest))
    else:
        low = draw(st.integers(lowest, highest - 1))
        high = draw(st.integers(low + 1, highest))
    return tq.QuantizationSpec(
        dtype,
        low,
        high,
        granularity,
        symmetric=symmetric,
        ch_axis=0 if granularity == "per_axis" else None,
        group_size=2 if granularity == "per_group" else None,
        eps=draw(st.sampled_from([2.0**-23, 2.0**-12])),
    )


#: Float32 numbers of an ordinary size, zeros of either sign among them.
ordinary = st.floats(-1e4, 1e4, width=32) | st.floats(-1, 1, width=32)
#: What must not move a range.
not_data = st.sampled_from(
    [math.nan, math.inf, -math.inf, torch.finfo(torch.float32).min, torch.finfo(torch.float32).max]
)


def tensors(
    shape: tuple[int, ...], elements: st.SearchStrategy[float] = ordinary
) -> st.SearchStrategy[torch.Tensor]:
    """Float32 tensors of a shape."""
    size = math.prod(shape)
    return st.lists(elements, min_size=size, max_size=size).map(
        lambda values: torch.tensor(values, dtype=torch.float32).reshape(shape)
    )


# ----------------------------------------------------------------------------------------------------------
# Random graphs
# ----------------------------------------------------------------------------------------------------------


@attrs.frozen
class Step:
    """One operation of a random model: what, on which earlier values, and a number where it needs one."""

    kind: str
    inputs: tuple[int, ...]
    number: int = 0


class RandomModel(nn.Module):
    """Steps one after the other; each may read any value before it, and layers are used more than once.

    Weights keep the size of the signal (variance 1 / fan in), so that error is measured against a signal.
    """

    def __init__(
        self, steps: tuple[Step, ...], shapes: tuple[tuple[int, ...], ...], seed: int, example: torch.Tensor
    ) -> None:
        super().__init__()
        self.steps = steps
        self.example = example
        self.layers = nn.ModuleDict()
        generator = torch.Generator().manual_seed(seed)
        for step in steps:
            name = _layer_name(step, shapes)
            if name and name not in self.layers:
                layer = _layer(step, shapes[step.inputs[0]])
                for parameter in layer.parameters():
                    fan_in = max(parameter[0].numel(), 1) if parameter.dim() > 1 else 16
                    parameter.data = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
                self.layers[name] = layer
        self.names = tuple(_layer_name(step, shapes) for step in steps)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The last value, one from the middle, and those that no step reads."""
        values = [x]
        for step, name in zip(self.steps, self.names, strict=True):
            arguments = [values[index] for index in step.inputs]
            function = self.layers[name] if name else _FUNCTIONS[step.kind]
            values.append(function(*arguments) if name else function(step.number, *arguments))
        read = {index for step in self.steps for index in step.inputs}
        unread = [value for index, value in enumerate(values[1:-1], start=1) if index not in read]
        return values[-1], values[len(values) // 2], *unread

    def __repr__(self) -> str:
        steps = ", ".join(f"{step.kind}{step.inputs}{step.number}" for step in self.steps)
        return f"RandomModel({tuple(self.example.shape)}: {steps})"


_FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "relu": lambda _, x: torch.relu(x),
    "hardtanh": lambda _, x: nn.functional.hardtanh(x, -2.0, 2.0),
    "clamp": lambda _, x: torch.clamp(x, min=-1.5),
    "tanh": lambda _, x: torch.tanh(x),
    "softmax": lambda _, x: torch.softmax(x, -1),
    "add": lambda _, x, y: x + y,
    "mul": lambda _, x, y: x * y,
    "add_scalar": lambda n, x: x + (n + 1) / 4,
    "mul_scalar": lambda n, x: x * ((n + 2) / 4),
    "masked": lambda _, x: x * (x > 0),
    "cat": lambda _, x, y: torch.cat([x, y], 1),
    "pool": lambda _, x: nn.functional.max_pool2d(x, 2),
    "mean": lambda _, x: x.mean((2, 3), keepdim=True),
    "global_pool": lambda _, x: nn.functional.adaptive_avg_pool2d(x, 1),
    "reshape": lambda _, x: x.reshape(x.shape[0], -1),
    "flatten": lambda _, x: torch.flatten(x, 1),
    "transpose": lambda _, x: x.transpose(1, 2),
    "permute": lambda _, x: x.permute(0, *range(x.dim() - 1, 0, -1)),
    "slice": lambda _, x: x[:, : max(x.shape[1] // 2, 1)],
    "unsqueeze": lambda _, x: x.unsqueeze(-1),
    "squeeze": lambda _, x: x.squeeze(-1),
}
_TWO_INPUTS = ("add", "mul", "cat")


def _layer_name(step: Step, shapes: tuple[tuple[int, ...], ...]) -> str:
    """Layers of one kind for one width that have one number are one layer."""
    if step.kind not in ("linear", "conv", "depthwise", "conv_bn", "norm", *control_flow.LAYERS):
        return ""
    shape = shapes[step.inputs[0]]
    width = shape[1] if step.kind in ("conv", "depthwise", "conv_bn") else shape[-1]
    return f"{step.kind}_{width}_{step.number}"


def _layer(step: Step, shape: tuple[int, ...]) -> nn.Module:
    if step.kind == "linear":
        return nn.Linear(shape[-1], 6 + step.number, bias=step.number > 0)
    if step.kind in control_flow.LAYERS:
        return control_flow.LAYERS[step.kind](shape[-1])
    if step.kind == "norm":
        return nn.LayerNorm(shape[-1], elementwise_affine=False)
    width = shape[1]
    if step.kind == "depthwise":
        return nn.Conv2d(width, width, 3, padding=1, groups=width)
    if step.kind == "conv":
        return nn.Conv2d(width, 3 + step.number, 3, padding=1)
    return nn.Sequential(nn.Conv2d(width, 4, 1, bias=False), nn.BatchNorm2d(4))


def _kinds(shape: tuple[int, ...]) -> list[str]:
    """The operations that a tensor of a shape can be put through."""
    kinds = ["relu", "hardtanh", "clamp", "tanh", "add", "mul", "add_scalar", "mul_scalar", "masked", "slice"]
    kinds += ["linear", "linear", "softmax"]
    if shape[1] <= 8:
        kinds.append("cat")
    if len(shape) == 4:
        kinds += ["conv", "conv", "conv_bn", "depthwise", "global_pool", "mean", "flatten"]
        kinds += ["reshape", "permute"]
        if min(shape[2:]) >= 2:
            kinds.append("pool")
    if len(shape) == 3:
        kinds += ["transpose", "unsqueeze", "norm"]
    if len(shape) > 2 and shape[-1] == 1:
        kinds.append("squeeze")
    return kinds


@st.composite
def random_models(draw: st.DrawFn, with_control_flow: bool = False) -> RandomModel:
    """A model of two to eight steps over an image, a sequence or a matrix, with an example input."""
    shape = draw(st.sampled_from([(2, 4, 6, 6), (2, 5, 8), (4, 8)]))
    x = normal(*shape, seed=draw(st.integers(0, 2**16)))
    values = [x]
    steps: list[Step] = []
    for _ in range(draw(st.integers(2, 8))):
        first = draw(st.integers(max(0, len(values) - 3), len(values) - 1))
        here = values[first]
        kinds = _kinds(tuple(here.shape))
        if sum(step.kind == "mul" for step in steps) >= 2:
            # Products of products are mostly near zero with a few large values, which suits no scale.
            kinds.remove("mul")
        # Control flow is slow to export: one in every eight models has it, and once.
        if with_control_flow and not steps and draw(st.integers(0, 7)) == 7:
            kinds = sorted(control_flow.LAYERS)
        kind = draw(st.sampled_from(kinds))
        inputs = [first]
        if kind in _TWO_INPUTS:
            alike = [i for i, value in enumerate(values) if value.shape == here.shape]
            inputs.append(draw(st.sampled_from(alike)))
        steps.append(Step(kind, tuple(inputs), draw(st.integers(0, 2))))
        shapes = tuple(tuple(value.shape) for value in values)
        values.append(_probe(steps[-1], shapes, [values[i] for i in inputs]))
    shapes = tuple(tuple(value.shape) for value in values)
    return RandomModel(tuple(steps), shapes, draw(st.integers(0, 2**16)), x).eval()  # type: ignore[return-value]


def _probe(step: Step, shapes: tuple[tuple[int, ...], ...], inputs: list[torch.Tensor]) -> torch.Tensor:
    """A tensor of the shape that the step gives."""
    if _layer_name(step, shapes):
        with torch.no_grad():
            return _layer(step, shapes[step.inputs[0]]).eval()(*inputs)
    return _FUNCTIONS[step.kind](step.number, *inputs)
