"""Inputs and outputs of an exported program, and of the file that is made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchquilt.backend import pytree
from torchquilt_onnxruntime.stored import KEY, Leaf, Signature

if TYPE_CHECKING:
    from onnxscript import ir
    from torch.export import ExportedProgram


#: Beginning of names that last until all have their own.
_UNUSED = "torchquilt.unnamed."


def signature_of(program: ExportedProgram) -> Signature:
    """The inputs and outputs of a call of a program, with the names that they have in the file."""
    from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

    inputs: list[Leaf] = []
    outputs: list[Leaf] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            is_constant = isinstance(spec.arg, ConstantArgument)
            inputs.append(Leaf("", _constant(spec.arg)) if is_constant else Leaf(spec.arg.name))
    taken = {leaf.name for leaf in inputs}
    for output in program.graph_signature.output_specs:
        if output.kind is not OutputKind.USER_OUTPUT:
            continue  # refused when it is written
        is_constant = isinstance(output.arg, ConstantArgument)
        name = f"output_{len(outputs)}"
        while name in taken:
            name += "_"
        outputs.append(Leaf("", _constant(output.arg)) if is_constant else Leaf(name))
    given, returned = program.call_spec.in_spec, program.call_spec.out_spec
    structure = tuple(pytree.treespec_dumps(one) if one is not None else "" for one in (given, returned))
    return Signature(tuple(inputs), tuple(outputs), (structure[0], structure[1]))


def _constant(argument: Any) -> Any:
    value = argument.value
    return value if isinstance(value, (bool, int, float)) else None


def with_signature(model: ir.Model, signature: Signature) -> None:
    """Name the outputs of a model, and keep the signature in its metadata."""
    names = [leaf.name for leaf in signature.outputs if not leaf.is_constant]
    given = [leaf.name for leaf in signature.inputs if not leaf.is_constant]
    ends = [*model.graph.inputs, *model.graph.outputs]
    for number, value in enumerate(ends):  # one may have the name that another gets
        value.name = f"{_UNUSED}{number}"
    taken = {*given, *names}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.name in taken:
                value.name = f"{value.name}_of_{node.name}"
    for value, name in zip(ends, [*given, *names], strict=True):
        value.name = name
    model.metadata_props[KEY] = signature.to_text()
