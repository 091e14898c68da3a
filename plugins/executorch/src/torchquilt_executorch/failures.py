"""Errors of ExecuTorch as ours: they name the operator of the model, its module and its source line."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch.fx import GraphModule

from torchquilt import LoweringError
from torchquilt.backend import Origins, node_in_words

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

#: What ExecuTorch says → what that means.
_KNOWN = {
    "Missing out variants": "ExecuTorch has no kernel for an operator that writes to given memory "
    "(a missing out variant).",
    "is not in Core ATen opset": "ExecuTorch does not take an operator.",
    "is not Aten Canonical": "ExecuTorch does not take an operator.",
    "Tensor inputs with mismatched dtypes": "ExecuTorch does not take an operator with "
    "tensors of these dtypes.",
    "was not decomposed or delegated": "A partitioner had ExecuTorch keep an operator whole for its "
    "delegate, and left one. They do not look into the subgraphs of control flow.",
}
_REMEDY = (
    "write the model without the operator, register an out variant for it, or choose other backends: "
    "lower(..., backends=[...])"
)
#: What ExecuTorch says → what to do, where that is not what is to be done elsewhere.
_REMEDIES = {
    "was not decomposed or delegated": "take the operator out of the branch or loop, or lower without that "
    "partitioner: lower(..., backends=[...]); the subgraph then runs in float",
}
_MOST_NAMED = 3
_Named = list[tuple[str, "Node"]]


@contextlib.contextmanager
def step(problem: str, program: ExportedProgram, backend: str | None = None) -> Iterator[None]:
    """Have what goes wrong in a step say which operators of the model it is about."""
    try:
        yield
    except LoweringError:
        raise
    except Exception as error:  # ExecuTorch raises RuntimeError, InternalError, ExportError, ...
        lines = [*_lines(error)]
        line, named = _Told(program).about(lines)
        names = [*dict.fromkeys(node_in_words(node, name) + _dtypes(node, lines) for name, node in named)]
        said = "; ".join(dict.fromkeys(filter(None, (lines[0], line))))
        known = "\n".join(lines)
        remedy = next((told for part, told in _REMEDIES.items() if part in known), _REMEDY)
        raise LoweringError(
            next((told for part, told in _KNOWN.items() if part in known), problem),
            backend=backend,
            node="; ".join([*names[:_MOST_NAMED], *(["…"] if names[_MOST_NAMED:] else [])]) or None,
            expected="operators that ExecuTorch, or a delegate, has kernels for" if names else None,
            got=f"{type(error).__name__}: {said}",
            remedy=remedy if names else "see the cause above",
        ) from error


def causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that it was raised for, the outermost first."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _lines(error: BaseException) -> Iterator[str]:
    """Lines of an exception and its causes. Dumps of whole graphs, which name every operator, are left
    out.
    """
    for one in causes(error):
        for line in (str(one).strip() or repr(one)).splitlines():
            is_of_a_graph = "call_function[" in line and "While executing" not in line
            if line.strip() and not is_of_a_graph:
                yield line.strip()


class _Told:
    """The operators and dtypes of a program, to be found by what ExecuTorch says of them."""

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self._nodes = dict(_all_nodes(program))
        self._operators = _by_operator(self._nodes.items())

    def about(self, lines: Sequence[str]) -> tuple[str, _Named]:
        """The first line that names operators, and those; or else one that names a dtype that is used."""
        for found_by in (self._by_operator, self._by_dtype):
            for line in lines:
                if named := found_by(line):
                    return line, named
        return "", []

    def _by_operator(self, line: str) -> _Named:
        return _matching(self._operators, line) or _matching(self._decomposed, line)

    def _by_dtype(self, line: str) -> _Named:
        return [
            (name, node)
            for name, node in self._nodes.items()
            if any(re.search(rf"(?<!\w){re.escape(str(dtype))}(?!\w)", line) for dtype in _dtypes_of(node))
        ]

    @cached_property
    def _decomposed(self) -> dict[str, _Named]:
        """Pattern of an operator that others are decomposed into → those others."""
        origins = Origins.of_program(self._program)
        try:
            decomposed = self._program.run_decompositions()
        except Exception:  # torch raises what it likes; then it cannot be said
            return {}
        later = (
            (origins.of(node, name.removesuffix(node.name)), node) for name, node in _all_nodes(decomposed)
        )
        found = _by_operator((name, node) for name, node in later if name in self._nodes)
        return {key: [(name, self._nodes[name]) for name, _ in named] for key, named in found.items()}


def _all_nodes(program: ExportedProgram) -> Iterator[tuple[str, Node]]:
    """The nodes of a program and of every graph in it, each with its full name."""
    for path, module in program.graph_module.named_modules():
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                yield f"{path}.{node.name}" if path else node.name, node


def _by_operator(nodes: Iterable[tuple[str, Node]]) -> dict[str, _Named]:
    """Pattern of how ExecuTorch may write an operator → the nodes that call it."""
    found: dict[str, _Named] = defaultdict(list)
    for name, node in nodes:
        schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
        if schema is not None:
            operator = re.escape(schema.name).replace("::", "(::|[.]|_)")
            # aten::sort, aten.sort, or the name that a node has in ExecuTorch's dialect: aten_sort_default_1.
            found[rf"(?<!\w){operator}(_{schema.overload_name or 'default'}(_\d+)?)?(?!\w)"].append(
                (name, node)
            )
    return found


def _matching(operators: dict[str, _Named], line: str) -> _Named:
    found = (named for pattern, named in operators.items() if re.search(pattern, line, re.IGNORECASE))
    return [one for named in found for one in named]


def _dtypes(node: Node, lines: Sequence[str]) -> str:
    """The dtypes that a node reads and returns, where the message is about dtypes."""
    if not any(re.search(r"dtype|scalar ?type|torch[.]\w*\d", line, re.IGNORECASE) for line in lines):
        return ""
    reads = {str(dtype) for source in node.all_input_nodes for dtype in _dtypes_of(source)}
    returns = {str(dtype) for dtype in _dtypes_of(node)}
    read, returned = (", ".join(sorted(dtypes)) or "no tensor" for dtypes in (reads, returns))
    return f", which reads {read} and returns {returned}"


def _dtypes_of(node: Node) -> set[torch.dtype]:
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    return {one.dtype for one in values if isinstance(one, torch.Tensor)}
