"""Compiling a program, with what the compiler refuses found and left to float."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from torchquilt import LoweringError
from torchquilt.backend import is_conversion, node_in_words, overload_name
from torchquilt_inductor_x86 import torch_private as inductor
from torchquilt_inductor_x86.canonical import canonicalize
from torchquilt_inductor_x86.generated import Generated, in_steps, read
from torchquilt_inductor_x86.operations import is_product
from torchquilt_inductor_x86.signature import example_arguments

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

#: Settings of Inductor for every program.
OPTIONS: Mapping[str, Any] = {"freezing": True}


@attrs.frozen(eq=False)
class Compilation:
    """A compiled program.

    Args:
        buffer: the package.
        nodes: the calls of the program that was compiled, by the names of those that were given.
        kernels: what was generated.
        refused: name of an operator that was left to float → the words of the compiler.
    """

    buffer: bytes
    nodes: Mapping[str, Node]
    kernels: tuple[Generated, ...]
    refused: Mapping[str, str]


def compile_program(program: ExportedProgram, left: Mapping[str, str]) -> Compilation:
    """Compile a program; an operator on integers that Inductor refuses is left to float.

    Args:
        program: it is not changed.
        left: name of an operator that is known to be refused → the words of the runtime.

    Raises:
        LoweringError: Inductor refuses an operator in float, or all of the program.
    """
    refused = dict(left)
    while True:
        model: Any = program.module(check_guards=False)
        names = {node: inductor.source_name(node) or node.name for node in model.graph.nodes}
        canonicalize(model, frozenset(refused))
        nodes = _by_name(model, names)
        try:
            made = inductor.compile_package(model, example_arguments(program), OPTIONS, read)
        except LoweringError:
            raise
        except Exception as error:  # Inductor raises what it likes
            name = inductor.blamed(error)
            product = _product_of(nodes, name)
            if not product or product in refused:
                raise _failed(program, name, error) from error
            refused[product] = words(error)
            continue
        buffer, kernels, calls = made
        return Compilation(buffer, nodes, in_steps(kernels, calls), refused)


def _by_name(model: GraphModule, names: Mapping[Node, str]) -> dict[str, Node]:
    """The calls of a model by the node of the program that each is, or that it stands for."""
    kept = {names[node] for node in model.graph.nodes if node in names}
    found: dict[str, Node] = {}
    for node in model.graph.nodes:
        if node.op != "call_function":
            continue
        name = names.get(node) or inductor.source_name(node)
        if node in names or (name not in kept and name not in found):
            found[name] = node
    return found


def _product_of(nodes: Mapping[str, Node], name: str) -> str:
    """The product of integers that a kernel computes, by the last operator of it; empty if it has none."""
    names = {node: given for given, node in nodes.items()}
    waiting = [nodes[name]] if name in nodes else []
    for node in waiting:  # grows while it is walked
        if is_product(node):
            return names[node]
        if node is nodes[name] or not is_conversion(node):
            waiting += [source for source in node.all_input_nodes if source in names]
    return ""


def words(error: BaseException) -> str:
    """An error of torch in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else error!r}"


def _failed(program: ExportedProgram, name: str, error: BaseException) -> LoweringError:
    node = next((one for one in program.graph.nodes if one.name == name), None)
    return LoweringError(
        "Inductor cannot compile the program.",
        node=None if node is None else node_in_words(node),
        expected="operators that Inductor generates code for",
        got=words(error),
        remedy="write the model without the operator"
        if node is not None and overload_name(node)
        else "see the cause above",
    )


def check_compiler() -> None:
    """Refuse to compile where there is no C++ compiler.

    Raises:
        LoweringError: there is none.
    """
    try:
        inductor.check_compiler()
    except Exception as error:  # torch raises an error of its own for it
        raise LoweringError(
            "Inductor compiles C++, and there is no C++ compiler.",
            expected="g++ or clang++",
            got=words(error),
            remedy="apt-get install g++, or name a compiler in the environment variable CXX",
        ) from error
