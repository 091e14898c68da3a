"""Errors of ExecuTorch as ours: they name the operator of the model, its module and its source line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torchquilt import LoweringError
from torchquilt.graph.bodies import nodes_of, regions
from torchquilt.lowering import place_of
from torchquilt_executorch.origins import Origins

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

#: What ExecuTorch says → what that means.
_KNOWN = {
    "Missing out variants": "ExecuTorch has no kernel for an operator that writes to given memory "
    "(a missing out variant).",
    "is not in Core ATen opset": "ExecuTorch does not take an operator.",
    "is not Aten Canonical": "ExecuTorch does not take an operator.",
    "was not decomposed or delegated": "A partitioner had ExecuTorch keep an operator whole for its "
    "delegate, and left one. They do not look into the bodies of control flow.",
}
_REMEDY = (
    "write the model without the operator, register an out variant for it, or choose other backends: "
    "lower(..., backends=[...])"
)
#: What ExecuTorch says → what to do, where that is not what is to be done elsewhere.
_REMEDIES = {
    "was not decomposed or delegated": "take the operator out of the branch or loop, or lower without that "
    "partitioner: lower(..., backends=[...]); the body then runs in float",
}
_MOST_PLACES = 3


@contextlib.contextmanager
def step(problem: str, program: ExportedProgram, backend: str | None = None) -> Iterator[None]:
    """Have what goes wrong in a step say which operators of the model it is about."""
    try:
        yield
    except LoweringError:
        raise
    except Exception as error:  # ExecuTorch raises RuntimeError, InternalError, ExportError, ...
        first = (str(error).strip() or repr(error)).partition("\n")[0]
        places = [*dict.fromkeys(place_of(node, name) for name, node in _named_in(first, program))]
        remedy = next((told for part, told in _REMEDIES.items() if part in first), _REMEDY)
        raise LoweringError(
            next((told for part, told in _KNOWN.items() if part in first), problem),
            backend=backend,
            node="; ".join([*places[:_MOST_PLACES], *(["…"] if places[_MOST_PLACES:] else [])]) or None,
            expected="operators that ExecuTorch, or a delegate, has kernels for" if places else None,
            got=f"{type(error).__name__}: {first}",
            remedy=remedy if places else "see the cause above",
        ) from error


def _named_in(message: str, program: ExportedProgram) -> list[tuple[str, Node]]:
    """The nodes of a program whose operator a message of ExecuTorch names, each with its name in the program.

    It may be one that another operator is decomposed into; then the node is that of the other one.
    """
    nodes = {
        region.name_of(node): node
        for region in regions(program.graph_module)
        for node in region.module.graph.nodes
    }
    named = [(name, node) for name, node in nodes.items() if _is_named(node, message)]
    if named:
        return named
    origins = Origins.of_program(program)
    try:
        decomposed = program.run_decompositions()
    except Exception:  # then it cannot be said
        return []
    later = (node for node in nodes_of(decomposed.graph_module) if _is_named(node, message))
    return [(name, nodes[name]) for name in map(origins.of, later) if name]


def _is_named(node: Node, message: str) -> bool:
    """Whether a message has the operator that a node calls, as ``aten.sort`` or ``aten::sort``."""
    schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
    if schema is None:
        return False
    name = re.escape(schema.name).replace("::", "(::|[.]|_)")
    overload = schema.overload_name or "default"
    # aten::sort, aten.sort, or the name that a node has in ExecuTorch's dialect: aten_sort_default_1.
    return re.search(rf"(?<!\w){name}(_{overload}(_\d+)?)?(?!\w)", message, re.IGNORECASE) is not None
