"""Steps of a stored program: the instruction that runs each operator.

A program of ExecuTorch is a list of instructions, in the order of the graph that it was written from. The two
are walked together; where they do not agree (control flow jumps), nothing is said of the program's steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from torchquilt.backend import overload_name

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

_DELEGATE_CALL = "executorch_call_delegate"
_DELEGATE = "a delegate"


def name_of(chain: int, instruction: int) -> str:
    """Name of an instruction, as steps have it."""
    return f"{chain}.{instruction}"


@attrs.frozen(eq=False)
class Steps:
    """Steps of a stored program.

    Args:
        of_node: node of the final program → the instruction that runs it.
        of_delegates: the instruction of each call of a delegate, in order.
    """

    of_node: Mapping[Node, str] = attrs.field(factory=dict)
    of_delegates: tuple[str, ...] = ()

    @classmethod
    def of(cls, final: ExportedProgram, plan: Any) -> Steps:
        """Steps of a program.

        Args:
            final: the graph that it was written from.
            plan: of its method, as the file has it.
        """
        nodes = list(_called(final))
        instructions = list(_instructions(plan))
        if [name for _, name in nodes] != [name for _, name in instructions]:
            return cls()
        names = [step for step, _ in instructions]
        return cls(
            {node: step for (node, _), step in zip(nodes, names, strict=True)},
            tuple(step for step, name in instructions if name == _DELEGATE),
        )


def _called(final: ExportedProgram) -> Iterator[tuple[Node, str]]:
    """The nodes that become instructions, with the name of the kernel that they call."""
    for node in final.graph.nodes:
        if node.op != "call_function":
            continue
        if str(getattr(node.target, "__name__", node.target)) == _DELEGATE_CALL:
            yield node, _DELEGATE
        elif overload_name(node) and hasattr(node.target, "_schema"):
            yield node, kernel_name(node.target._schema.name, node.target._schema.overload_name)


def _instructions(plan: Any) -> Iterator[tuple[str, str]]:
    """The calls of a plan: their name as a step, and the kernel."""
    for number, chain in enumerate(plan.chains):
        for index, instruction in enumerate(chain.instructions):
            kind = type(instruction.instr_args).__name__
            if kind == "DelegateCall":
                yield name_of(number, index), _DELEGATE
            elif kind == "KernelCall":
                called = plan.operators[instruction.instr_args.op_index]
                yield name_of(number, index), kernel_name(called.name, called.overload)
            elif kind != "FreeCall":
                yield "", kind  # a jump or a move, for which the graph has no operator


def kernel_name(name: str, overload: str) -> str:
    """Name of a kernel as the runtime has it: ``aten::mean.out``."""
    return f"{name}.{overload}" if overload else name
