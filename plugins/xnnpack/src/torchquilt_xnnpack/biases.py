"""Biases of their own for operators that share one.

The delegate stores a tensor once for each of its parts: as floats for an operator in float, as integers on
the scale of its input for one of integers. The second reader gets what the first one needed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torchquilt.backend import is_dequantize, overload_name

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

#: Operators with a stored bias → the position of the bias among their arguments.
_BIAS = {
    "aten.addmm.default": 0,
    "aten.conv1d.default": 2,
    "aten.conv1d.padding": 2,
    "aten.conv2d.default": 2,
    "aten.conv2d.padding": 2,
    "aten.conv_transpose1d.default": 2,
    "aten.conv_transpose2d.input": 2,
    "aten.convolution.default": 2,
    "aten.linear.default": 2,
}


def own_biases(program: ExportedProgram) -> ExportedProgram:
    """Give each operator a bias of its own where several read one, and one of them computes with integers.

    Args:
        program: it is not changed. Shares its other tensors with the result.
    """
    if not any(_is_shared(bias) for _, bias in _read_in(program)):
        return program
    from torchquilt.backend import copied_graph, with_graph

    graph, copies = copied_graph(program.graph)
    signature = copy.deepcopy(program.graph_signature)
    changed = with_graph(program, graph, signature)
    changed._state_dict = dict(program.state_dict)
    for node, bias in _read_in(program):
        if _is_shared(bias):
            _give_own(changed, copies[node], copies[bias])
    return changed


def _read_in(program: ExportedProgram) -> Iterator[tuple[Node, Node]]:
    """Each operator with the stored bias that it reads."""
    stored = _names_of_stored(program)
    for node in program.graph.nodes:
        position = _BIAS.get(overload_name(node))
        bias: Any = node.args[position] if position is not None and len(node.args) > position else None
        if bias is not None and bias.name in stored:
            yield node, bias


def _names_of_stored(program: ExportedProgram) -> dict[str, str]:
    """Input of the graph → the name of the tensor that is stored for it, whatever stores it."""
    signature = program.graph_signature
    return {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }


def _is_shared(bias: Node) -> bool:
    return len(bias.users) > 1 and any(_reads_integers(user) for user in bias.users)


def _reads_integers(node: Node) -> bool:
    return any(map(is_dequantize, node.all_input_nodes))


def _give_own(program: ExportedProgram, node: Node, bias: Node) -> None:
    """Let an operator read a copy of a bias, stored under a name of its own."""
    import torch
    from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

    name = _names_of_stored(program)[bias.name]
    value = program.constants[name] if name in program.constants else program.state_dict[name]
    with program.graph.inserting_after(bias):
        own = program.graph.placeholder(f"{bias.name}_of_{node.name}")
    own.meta = copy.copy(bias.meta)
    node.replace_input_with(bias, own)
    program.state_dict[own.name] = torch.nn.Parameter(value.detach().clone(), requires_grad=False)
    specs = program.graph_signature.input_specs
    at = next(number for number, spec in enumerate(specs) if spec.arg.name == bias.name)
    specs.insert(at + 1, InputSpec(InputKind.PARAMETER, TensorArgument(own.name), own.name))
