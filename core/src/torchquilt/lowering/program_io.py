"""The inputs and outputs of a program, and taking quantize and dequantize off them.

An input that is only read to be quantized can as well be given as integers, and an output that was
dequantized right before can be returned as integers. Importing this module does not import torch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from torchquilt.errors import LoweringError
from torchquilt.graph.node_values import overload_name
from torchquilt.graph.qdq import is_dequantize, is_quantize, qdq_of
from torchquilt.lowering.program_facts import LARGEST, Dimension, Port, Ports
from torchquilt.spec.dtypes import dtype_name

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from torch.fx import Node

    from torchquilt.lowering.target import Constant


@attrs.frozen
class _QParams:
    """The parameters of a quantized tensor."""

    dtype: str
    scale: float
    zero_point: int
    quant_min: int
    quant_max: int


def with_integer_io(
    program: ExportedProgram, io_dtype: torch.dtype | Mapping[str, torch.dtype] | None
) -> tuple[ExportedProgram, Ports]:
    """The program with integer inputs and outputs, and a description of these.

    Args:
        program: it is not changed.
        io_dtype: for all inputs and outputs that are floating point, or for those that are named; None leaves
            the program as it is.

    Raises:
        LoweringError: one of them is not quantized to that dtype, is not there, or is no floating point.
    """
    inputs, outputs = _inputs(program), _outputs(program)
    if io_dtype is None:
        return program, _ports(program, inputs, outputs, {})
    asked = _asked(io_dtype, inputs, outputs)
    by_name: dict[str, _QParams] = {}
    for name, dtype in asked.items():
        by_name[name] = _only_qparams(
            name, inputs[name] if name in inputs else outputs[name], name in inputs, dtype
        )
    changed = _without_conversions(program, inputs, outputs, by_name)
    return changed, _ports(changed, _inputs(changed), _outputs(changed), by_name)


def output_scales(program: ExportedProgram) -> tuple[float | None, ...]:
    """The step of each output, None for one that has none.

    That is the scale of what is dequantized right before it is returned, and 1 for integers that are returned
    as they were quantized.
    """
    return tuple(map(_step, _outputs(program).values()))


def _step(output: Any) -> float | None:
    if isinstance(output, _Fixed):
        return None
    if is_quantize(output):
        return 1.0
    qparams = _qparams(output)
    return None if qparams is None else qparams.scale


@attrs.frozen
class _Fixed:
    """The constant that export made of an input, instead of a node."""

    value: Constant


def _inputs(program: ExportedProgram) -> dict[str, Any]:
    """Name of each input → its node, or the constant that export made of it."""
    from torch.export.graph_signature import ConstantArgument, InputKind

    nodes = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    specs = (spec for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT)
    arguments = (spec.arg for spec in specs)
    return {
        one.name: _Fixed(one.value) if isinstance(one, ConstantArgument) else nodes[one.name]
        for one in arguments
    }


def _outputs(program: ExportedProgram) -> dict[str, Any]:
    """``output_0``, ``output_1`` … → the node of each output of a call, or the constant that it is."""
    from torch.export.graph_signature import OutputKind
    from torch.fx import Node

    (values,) = program.graph.output_node().args
    pairs = zip(program.graph_signature.output_specs, values, strict=True)
    seen = [value for spec, value in pairs if spec.kind is OutputKind.USER_OUTPUT]
    found = (value if isinstance(value, Node) else _Fixed(value) for value in seen)
    return {f"output_{number}": value for number, value in enumerate(found)}


def _arguments(program: ExportedProgram) -> tuple[str, ...]:
    """The names of the arguments of a call, those by position first; empty where export kept none."""
    signature = program.module_call_graph[0].signature if program.module_call_graph else None
    names = getattr(signature, "forward_arg_names", None)
    return tuple(names or ())


def _asked(io_dtype: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> dict[str, torch.dtype]:
    """Name of each input and output that is to be integers → its dtype."""
    nodes = {**inputs, **outputs}
    if not isinstance(io_dtype, Mapping):
        return {name: io_dtype for name, node in nodes.items() if _is_float(node)}
    strays = [name for name in io_dtype if name not in nodes or not _is_float(nodes[name])]
    if strays:
        raise LoweringError(
            f"There is no floating-point input or output {strays[0]!r}.",
            expected=f"some of: {', '.join(name for name, node in nodes.items() if _is_float(node))}",
            got=", ".join(map(repr, strays)),
            remedy="inputs have the names of the model, outputs are output_0, output_1 …",
        )
    return dict(io_dtype)


def _is_float(node: Any) -> bool:
    import torch

    value = None if isinstance(node, _Fixed) else node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _only_qparams(name: str, node: Any, is_input: bool, dtype: torch.dtype) -> _QParams:
    """The one set of quantization parameters of an input or output.

    Raises:
        LoweringError: it has none of that dtype, or several.
    """
    wanted = str(dtype).removeprefix("torch.")
    if is_input:
        users = [user for user in node.users if user.op != "output"]
        found = {_qparams(user) if is_quantize(user) else None for user in users}
        got = ", ".join(f"{user.name} ({overload_name(user)})" for user in users) or "nothing"
        expected = f"an input that is only read to be quantized, in one way, to {wanted}"
    else:
        found = {_qparams(node) if is_dequantize(node) else None}
        got = f"{node.name} ({overload_name(node)})"
        expected = f"an output that is dequantized from {wanted} right before it is returned"
    qparams = next(iter(found)) if len(found) == 1 else None
    if qparams is None or qparams.dtype != wanted:
        raise LoweringError(
            f"The {'input' if is_input else 'output'} {name!r} is not quantized to {wanted}.",
            node=node.name,
            expected=expected,
            got=f"read by {got}" if is_input else got,
            remedy="quantize these inputs and outputs, or name only the others: "
            "io_dtype={'name of an input': torch.int8, 'output_0': torch.int8}",
        )
    return qparams


def _qparams(node: Node) -> _QParams | None:
    """The parameters that a node quantizes or dequantizes with, if it has one scale that is known."""
    told = qdq_of(node)
    if told is None or not told.has_one_scale:
        return None
    return _QParams(dtype_name(told.dtype), told.scale, told.zero_point, told.quant_min, told.quant_max)


def _without_conversions(
    program: ExportedProgram,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    by_name: Mapping[str, _QParams],
) -> ExportedProgram:
    """The program without the conversions at the named inputs and outputs. Tensors are shared."""
    import torch

    from torchquilt.graph.edits import copied_graph, with_graph

    graph, nodes = copied_graph(program.graph)
    for name, qparams in by_name.items():
        if name not in inputs:
            continue
        placeholder = nodes[inputs[name]]
        with placeholder.meta["val"].fake_mode:
            placeholder.meta["val"] = placeholder.meta["val"].to(getattr(torch, qparams.dtype))
        for user in [*placeholder.users]:
            user.replace_all_uses_with(placeholder)
            graph.erase_node(user)
    renamed: dict[str, str] = {}
    output = graph.output_node()
    for name in (name for name in by_name if name in outputs):
        dequantize = nodes[outputs[name]]
        (integers,) = dequantize.all_input_nodes
        output.replace_input_with(dequantize, integers)
        renamed[dequantize.name] = integers.name
        if not dequantize.users:
            graph.erase_node(dequantize)
    signature = copy.deepcopy(program.graph_signature)
    for spec in signature.output_specs:
        argument: Any = spec.arg
        argument.name = renamed.get(argument.name, argument.name)
    return with_graph(program, graph, signature)


def _ports(
    program: ExportedProgram,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    by_name: Mapping[str, _QParams],
) -> Ports:
    def port(name: str, node: Any) -> Port:
        if isinstance(node, _Fixed):
            dtype = type(node.value).__name__ if isinstance(node.value, (bool, int, float)) else ""
            return Port(name, dtype, (), is_constant=True, constant=node.value)
        qparams = by_name.get(name)
        parameters = attrs.asdict(qparams) if qparams is not None else {}
        parameters.pop("dtype", None)
        return Port(name, *_dtype_and_shape(node, program), **parameters)

    return Ports(
        tuple(port(name, node) for name, node in inputs.items()),
        tuple(port(name, node) for name, node in outputs.items()),
        _arguments(program),
    )


def _dtype_and_shape(node: Any, program: ExportedProgram) -> tuple[str, tuple[Dimension, ...]]:
    import torch

    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        shape = tuple(_dimension(size, program) for size in value.shape)
        return str(value.dtype).removeprefix("torch."), shape
    numbers = ((torch.SymInt, "int"), (bool, "bool"), (int, "int"), (float, "float"))
    return next((name for kind, name in numbers if isinstance(value, kind)), ""), ()


def _dimension(size: Any, program: ExportedProgram) -> Dimension:
    if isinstance(size, int):
        return Dimension(size, size)
    from torchquilt._internal.torch_private import bound_sympy

    found = bound_sympy(size.node.expr, program.range_constraints)
    return Dimension(int(found.lower), int(min(found.upper, LARGEST)), str(size))
