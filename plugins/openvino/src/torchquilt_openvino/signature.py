"""Inputs and outputs of a program: what OpenVINO can take, and what the file says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from torchquilt import LoweringError
from torchquilt.backend import bound_sympy, pytree
from torchquilt_openvino.stored import Facts, Tensor

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

_REFUSED_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.complex64, torch.complex128})
#: No dimension is larger.
LARGEST = 2**31 - 1
_WRITES = (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION, OutputKind.PARAMETER_MUTATION)


def check_has_no_state(program: ExportedProgram) -> None:
    """Refuse a program that changes tensors, which OpenVINO would forget.

    Args:
        program: decomposed, so that its signature says what it writes to.

    Raises:
        LoweringError: it does.
    """
    written = [spec.target for spec in program.graph_signature.output_specs if spec.kind in _WRITES]
    if written:
        raise LoweringError(
            "The model changes tensors that it keeps, which a program of OpenVINO cannot.",
            expected="a model without state",
            got=f"it writes to {', '.join(map(str, written))}",
            remedy="take the state as an input and return it, or lower to executorch",
        )


def check_is_taken(program: ExportedProgram) -> None:
    """Refuse what OpenVINO cannot take, or would compute in another precision than the model says.

    Raises:
        LoweringError: an input is a number that changes from call to call, or a tensor has another dtype.
    """
    for node in _inputs(program):
        value = node.meta.get("val")
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            raise LoweringError(
                f"The input {node.name!r} is a number that changes from call to call, which a program of "
                "OpenVINO cannot take.",
                node=node.name,
                expected="inputs that are tensors, or constants",
                got=f"{type(value).__name__} {value}",
                remedy="pass it as a tensor of one element, or export the model with a fixed number",
            )
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.dtype in _REFUSED_DTYPES:
            raise LoweringError(
                f"A program of OpenVINO takes no tensors of {value.dtype} here.",
                node=node.name,
                expected="inputs and weights of float32 and integers, in which its kernels compute",
                got=str(value.dtype),
                remedy="convert the model before it is exported: model.float()",
            )


def facts_of(program: ExportedProgram) -> Facts:
    """The facts that the file states about a program."""
    nodes = {node.name: node for node in program.graph.nodes}
    inputs = [
        _fact(spec.arg, nodes, program)
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT
    ]
    outputs: list[Tensor] = []
    numbers: dict[str, int] = {}  # OpenVINO returns a tensor once
    for spec in program.graph_signature.output_specs:
        if spec.kind is OutputKind.USER_OUTPUT:
            fact = _fact(spec.arg, nodes, program)
            number = 0 if fact.is_constant else numbers.setdefault(spec.arg.name, len(numbers))
            outputs.append(attrs.evolve(fact, number=number))
    called = program.call_spec
    structure = tuple(pytree.treespec_dumps(one) for one in (called.in_spec, called.out_spec))
    return Facts(tuple(inputs), tuple(outputs), (structure[0], structure[1]))


def _fact(argument: Any, nodes: dict[str, Node], program: ExportedProgram) -> Tensor:
    value = argument.value if isinstance(argument, ConstantArgument) else nodes[argument.name].meta["val"]
    if isinstance(value, torch.Tensor):
        return tensor_facts(value, program)
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        raise LoweringError(
            f"The output {argument.name!r} is a number that changes from call to call, which a program of "
            "OpenVINO cannot return.",
            node=argument.name,
            expected="outputs that are tensors, or constants",
            got=f"{type(value).__name__} {value}",
            remedy="return it as a tensor of one element",
        )
    is_number = isinstance(value, (bool, int, float))
    dtype = type(value).__name__ if is_number else ""
    return Tensor(dtype, is_constant=True, constant=value if is_number else None)


def _inputs(program: ExportedProgram) -> list[Node]:
    specs = program.graph_signature.input_specs
    names = {spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT}
    return [node for node in program.graph.find_nodes(op="placeholder") if node.name in names]


def tensor_facts(value: Any, program: ExportedProgram) -> Tensor:
    """The dtype of an input or output, and the sizes that its dimensions take."""
    low, high = [], []
    for size in value.shape:
        if isinstance(size, int):
            low.append(size)
            high.append(size)
        else:
            found = bound_sympy(size.node.expr, program.range_constraints)
            low.append(int(found.lower))
            high.append(int(min(found.upper, LARGEST)))
    return Tensor(str(value.dtype).removeprefix("torch."), low, high)
