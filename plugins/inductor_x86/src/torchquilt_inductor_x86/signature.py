"""Inputs and outputs of a program, as a package keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from torchquilt import LoweringError
from torchquilt.backend import Slot, pytree
from torchquilt_inductor_x86 import torch_private as inductor

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node


def input_nodes(program: ExportedProgram) -> list[Node]:
    """The inputs of a call, those that are constants as well."""
    specs = program.graph_signature.input_specs
    names = {spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT}
    return [node for node in program.graph.find_nodes(op="placeholder") if node.name in names]


def example_arguments(program: ExportedProgram) -> tuple[Any, Any]:
    """Arguments that a program can be compiled with: what it was recorded with, of any values."""
    spec = program.call_spec.in_spec
    leaves = [_example(node) for node in input_nodes(program)]
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return args, kwargs


def example_leaves(program: ExportedProgram) -> list[Any]:
    """The inputs that a program was exported with, one by one, or of any values where they are not known."""
    given = program.example_inputs
    return pytree.tree_leaves(example_arguments(program) if given is None else given)


def _example(node: Node) -> Any:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return laid_out(
            torch.zeros([_hint(size) for size in value.shape], dtype=value.dtype), order_of(value)
        )
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        raise LoweringError(
            f"The input {node.name!r} is a number that changes from call to call, which an AOTInductor "
            "package cannot take.",
            node=node.name,
            expected="inputs that are tensors, or constants",
            got=f"{type(value).__name__} {value}",
            remedy="pass it as a tensor of one element, or export the model with a fixed number",
        )
    return value


def order_of(value: torch.Tensor) -> tuple[int, ...]:
    """The order of the dimensions of a tensor in memory, as :class:`torchquilt.backend.Slot` has it.

    A tensor with gaps, or whose elements share memory, has the order that a copy of it has.
    """
    if not inductor.is_dense(value):
        return tuple(range(value.dim()))
    strides = [_hint(stride) for stride in value.stride()]
    return tuple(sorted(range(value.dim()), key=lambda dimension: (-strides[dimension], dimension)))


def laid_out(value: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """A tensor in memory with its dimensions in this order; it is copied if it lies otherwise."""
    back = sorted(range(len(order)), key=lambda position: order[position])
    return value.permute(*order).contiguous().permute(*back) if order else value.contiguous()


def _hint(size: Any) -> int:
    hint = getattr(getattr(size, "node", None), "hint", None)
    return int(size) if hint is None else int(hint)


def stored_signature(program: ExportedProgram) -> dict[str, Any]:
    """Inputs, outputs and their structures, as JSON can hold them."""
    specs = program.graph_signature.output_specs
    returned = zip(specs, program.graph.output_node().args[0], strict=True)
    outputs = [_slot(spec.arg, node) for spec, node in returned if spec.kind is OutputKind.USER_OUTPUT]
    inputs = [
        _slot(spec.arg, node)
        for spec, node in zip(
            program.graph_signature.input_specs, program.graph.find_nodes(op="placeholder"), strict=True
        )
        if spec.kind is InputKind.USER_INPUT
    ]
    structure = [
        pytree.treespec_dumps(one) for one in (program.call_spec.in_spec, program.call_spec.out_spec)
    ]
    return {"inputs": inputs, "outputs": outputs, "structure": structure}


def _slot(argument: Any, node: Any) -> dict[str, Any]:
    if isinstance(argument, ConstantArgument):
        value = argument.value
        kind = type(value).__name__ if isinstance(value, (bool, int, float)) else ""
        return {"dtype": kind, "is_constant": True, "constant": value}
    value = node.meta.get("val") if hasattr(node, "meta") else node
    if not isinstance(value, torch.Tensor):
        return {"dtype": "int"}
    return {
        "dtype": str(value.dtype).removeprefix("torch."),
        "shape": [_largest(size) for size in value.shape],
        "is_dynamic": any(not isinstance(size, int) for size in value.shape),
        "dim_order": order_of(value),
    }


def _largest(size: Any) -> int:
    from torchquilt.backend import bound_sympy

    if isinstance(size, int):
        return size
    upper = bound_sympy(size.node.expr, size.node.shape_env.var_to_range).upper
    return int(upper) if upper.is_integer and upper < 2**31 - 1 else 2**31 - 1


def slots_from(stored: list[dict[str, Any]]) -> tuple[Slot, ...]:
    """The inputs or outputs of a stored signature."""
    return tuple(
        Slot(
            one["dtype"],
            tuple(one.get("shape", ())),
            one.get("is_dynamic", False),
            tuple(one.get("dim_order", ())),
            is_constant=one.get("is_constant", False),
            constant=one.get("constant"),
        )
        for one in stored
    )
