"""Conversion of a program to OpenVINO's representation, with integers as its low precision kernels want them.

OpenVINO's own translations make a FakeQuantize of a quantize, and leave out dequantizes, also those of
constants: then a convolution gets integers for a weight, and adding a bias of floats to what it returns fails
("Arguments do not have the same element type"). Here the dequantize of a constant, or of an input, becomes
Convert, Subtract and Multiply, which OpenVINO's passes for low precision take for the weight of an integer
kernel.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import torch

from torchquilt import LoweringError
from torchquilt.backend import Origins, node_in_words, pytree, with_graph, without_pool_divisors
from torchquilt_openvino.form import integer_form, prepare_module
from torchquilt_openvino.loading import openvino
from torchquilt_openvino.signature import LARGEST, check_has_no_state, tensor_facts

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

_MOST_NAMED = 3
_REMEDY = "write the model without the operator, or leave it out of what is quantized"


@attrs.frozen(eq=False)
class Converted:
    """A program in OpenVINO's representation.

    Args:
        model: it.
        nodes: name of a node, as it begins the names of the operators made of it → the node of the program
            after decomposition.
        origins: the same name → the name of the node of the exported program.
    """

    model: Any
    nodes: Mapping[str, Node]
    origins: Mapping[str, str]


def converted(program: ExportedProgram, in_floats: Collection[str] = ()) -> Converted:
    """Convert a program.

    Args:
        program: it is not changed.
        in_floats: names of quantizes that are written in operators of floats.

    Raises:
        LoweringError: OpenVINO has no translation of an operator; says which.
    """
    origins = Origins.of_program(program)
    module = _module_of(integer_form(without_pool_divisors(program), in_floats))
    prepare_module(module)
    _keep_tensors(module)
    nodes = {node.name: node for node in module.graph.nodes}
    found = {name: origins.of(node) or name for name, node in nodes.items()}
    try:
        model = _translated(module)
    except Exception as error:  # OpenVINO has exceptions of its own for it
        raise _refusal(error, program, nodes, found) from error
    _name(model, nodes)
    _bound(model, module, program)
    return Converted(model, nodes, found)


def _module_of(program: ExportedProgram) -> GraphModule:
    """The program as a module, decomposed into the operators that OpenVINO translates."""
    from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose
    from torch.export.decomp_utils import CustomDecompTable

    table: Any = CustomDecompTable()  # type: ignore[no-untyped-call]  # torch has no types for it
    for operator in ops_to_not_decompose():
        if operator in table:
            table.pop(operator)
    decomposed = with_graph(program, program.graph).run_decompositions(table)
    check_has_no_state(decomposed)
    module: Any = decomposed.module(check_guards=False)
    return module  # type: ignore[no-any-return]


def _keep_tensors(module: GraphModule) -> None:
    """Take inputs and outputs away that are no tensors; changes the module."""
    graph = module.graph
    for node in graph.find_nodes(op="placeholder"):
        if not isinstance(node.meta.get("val"), torch.Tensor):
            value: Any = node.meta.get("val")  # a number
            node.replace_all_uses_with(value)
            graph.erase_node(node)
    output = graph.output_node()
    values, _ = pytree.tree_flatten(output.args)
    output.args = (tuple(dict.fromkeys(one for one in values if isinstance(one, torch.fx.Node))),)


def _translated(module: GraphModule) -> Any:
    """OpenVINO's model of a module."""
    openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
    from openvino.frontend.pytorch.utils import pt_to_ov_type_map

    frontend = FrontEndManager().load_by_framework("pytorch")
    for extension in _extensions():
        frontend.add_extension(extension)
    values = [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
    decoder = TorchFXPythonDecoder(module)
    shapes = [[size if isinstance(size, int) else -1 for size in value.shape] for value in values]
    decoder.input_shapes = [torch.Size(shape) for shape in shapes]
    decoder.input_types = [openvino().OVAny(pt_to_ov_type_map[str(value.dtype)]) for value in values]
    return frontend.convert(frontend.load(decoder))


# --- Translations of quantize and dequantize ----------------------------------------------------------------


def _extensions() -> list[Any]:
    from openvino.frontend.pytorch import ConversionExtension

    made = {
        "quantize_per_tensor.default": _quantize,
        "dequantize_per_tensor.default": _dequantize,
        "dequantize_per_channel.default": _dequantize_channels,
        "dequantize_per_channel_group.default": _dequantize_groups,
    }
    return [ConversionExtension(f"quantized_decomposed.{name}", one) for name, one in made.items()]


def _quantize(context: Any) -> Any:
    from openvino import opset13 as opset

    scale, zero_point, low, high = map(context.get_values_from_const_input, range(1, 5))
    bounds = [np.float32((one - zero_point) * float(scale)) for one in (low, high)]
    return opset.fake_quantize(context.get_input(0), *bounds, *bounds, int(high - low) + 1).outputs()


def _dequantize(context: Any) -> Any:
    values = context.get_input(0)
    if values.get_element_type().is_real():  # a quantize made a FakeQuantize of it
        return [values]
    scale, zero_point = map(context.get_values_from_const_input, (1, 2))
    return _dequantized(values, np.float32(scale), np.float32(zero_point)).outputs()


def _dequantize_channels(context: Any) -> Any:
    tensor, axis = context.get_input(0), context.get_values_from_const_input(3)
    shape = [1] * len(tensor.get_partial_shape())
    shape[axis] = -1
    scales, zero_points = (_constant(context, index).reshape(shape) for index in (1, 2))
    return _dequantized(tensor, scales, zero_points).outputs()


def _dequantize_groups(context: Any) -> Any:
    from openvino import opset13 as opset

    tensor = context.get_input(0)
    size = context.get_values_from_const_input(6)
    rows, columns = (int(one) for one in tensor.get_shape())
    grouped = opset.constant(tensor.get_node().data.reshape(rows, columns // size, size))
    scales, zero_points = (_constant(context, index).reshape(rows, -1, 1) for index in (1, 2))
    wide = _dequantized(grouped.output(0), scales, zero_points)
    return opset.reshape(wide, np.array([rows, columns]), False).outputs()


def _constant(context: Any, index: int) -> Any:
    """A constant input, as an array of float32."""
    return np.array(context.get_input(index).get_node().data, np.float32)


def _dequantized(integers: Any, scale: Any, zero_point: Any) -> Any:
    from openvino import opset13 as opset

    values = opset.convert(integers, "f32")
    if np.any(zero_point != np.rint(zero_point)):
        # OpenVINO's passes for low precision round a zero point that is subtracted.
        return opset.add(opset.multiply(values, scale), -zero_point * scale)
    if np.any(zero_point):
        values = opset.subtract(values, zero_point)
    return opset.multiply(values, scale)


# --- Names and shapes ---------------------------------------------------------------------------------------


def _name(model: Any, nodes: Mapping[str, Node]) -> None:
    """Give each operator a name that begins with the node that it is made of, the same in each process.

    OpenVINO keeps these names through its passes, and says of a kernel which of them it computes.
    """
    operators = model.get_ordered_ops()
    made_of: dict[str, str] = {}
    for one in operators:
        labels = [name for output in one.outputs() for name in output.get_names()]
        labels.append(one.get_friendly_name())
        heads = (re.split("[:/]", label)[0] for label in labels)
        made_of[one.get_name()] = next((head for head in heads if head in nodes), "")
    for one in reversed(operators):
        if not made_of[one.get_name()]:
            readers = (
                each.get_node().get_name() for out in one.outputs() for each in out.get_target_inputs()
            )
            made_of[one.get_name()] = next(filter(None, (made_of.get(name) for name in readers)), "")
    count: dict[str, int] = defaultdict(int)
    for one in operators:
        if one.get_type_name() != "Parameter":
            name = f"{made_of[one.get_name()] or 'model'}/{one.get_type_name()}"
            count[name] += 1
            one.set_friendly_name(name if count[name] == 1 else f"{name}{count[name]}")
    for number, output in enumerate(model.outputs):
        output.get_tensor().add_names({f"output_{number}"})
    model.set_friendly_name("model")


def _bound(model: Any, module: GraphModule, program: ExportedProgram) -> None:
    """Say in the model which sizes dynamic dimensions take."""
    ov = openvino()
    placeholders = module.graph.find_nodes(op="placeholder")
    shapes = {}
    for parameter, node in zip(model.inputs, placeholders, strict=True):
        told = tensor_facts(node.meta["val"], program)
        if told.low != told.high:
            shapes[parameter] = ov.PartialShape(
                [
                    ov.Dimension(low, high if high < LARGEST else -1) if low < high else ov.Dimension(low)
                    for low, high in zip(told.low, told.high, strict=True)
                ]
            )
    if shapes:
        model.reshape(shapes)


# --- Errors -------------------------------------------------------------------------------------------------


def _refusal(
    error: Exception, program: ExportedProgram, nodes: Mapping[str, Node], origins: Mapping[str, str]
) -> LoweringError:
    """The error for operators that OpenVINO does not translate, with the operators of the model."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    summary = [line for line in lines if re.match("-- .*(No conversion rule|Conversion is failed)", line)]
    names = {name for line in summary for name in re.findall(r"[\w.]+\.\w+\.\w+", line)}
    before = {node.name: node for node in program.graph.nodes}
    found = dict.fromkeys(
        node_in_words(before[origins[name]])
        for name, node in nodes.items()
        if str(node.target) in names and origins[name] in before
    )
    return LoweringError(
        "OpenVINO has no translation of an operator.",
        node="; ".join([*list(found)[:_MOST_NAMED], *(["…"] if len(found) > _MOST_NAMED else [])]) or None,
        expected="operators that OpenVINO's frontend for PyTorch translates",
        got="; ".join(summary or lines[-3:]),
        remedy=_REMEDY,
    )
