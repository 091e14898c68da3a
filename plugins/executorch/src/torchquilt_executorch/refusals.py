"""Refusals: the operators that a delegate refuses, found when it could not make its part of a program.

A delegate compiles each part that its partitioner made, and may fail at an operator that the partitioner let
through. A part that fails is divided again without some of its operators, until the delegate takes the rest:
the operators left out are refused. Only the part is compiled again, not the program.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from torchquilt import ProgramError
from torchquilt.backend import is_conversion, overload_name
from torchquilt_executorch.failures import causes
from torchquilt_executorch.withholding import Withheld, WithholdingPartitioner

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

_LOG = logging.getLogger(__name__)
#: Runs a compiled part by itself and raises the errors of the runtime, or does nothing.
Run = Callable[[Any], None]


@attrs.frozen(eq=False)
class _Part:
    """Part of a program that a partitioner made for a delegate.

    Args:
        program: the part, a program of its own.
        delegate: the id of the delegate.
        options: of the delegate.
    """

    program: ExportedProgram
    delegate: str
    options: Sequence[Any]

    def error(self, run: Run) -> Exception | None:
        """Exception of the delegate that compiles the part, or of the runtime that runs it."""
        from executorch.exir.backend.backend_api import to_backend

        return _error_of(lambda: run(to_backend(self.delegate, self.program, self.options)))


def refused(
    partitioner: WithholdingPartitioner, fresh: Callable[[], Any], compiled: Iterable[Any], run: Run
) -> dict[str, str]:
    """The operators that the delegate of a partitioner refuses.

    Args:
        partitioner: its delegate may have failed.
        fresh: makes a partitioner of the same kind.
        compiled: its parts that were compiled, as ExecuTorch has them.
        run: runs a compiled part by itself.

    Returns:
        Key of an operator (see :class:`Withheld`) → the delegate's words; empty where no part fails alone.
    """
    found: dict[str, str] = {}
    for part in (*_parts(partitioner), *map(_part_of, compiled)):
        error = part.error(run)
        if error is not None:
            found |= _Narrowing(part, partitioner.withheld, fresh, run).refused(error)
    return found


def _part_of(compiled: Any) -> _Part:
    return _Part(compiled.original_module, compiled.backend_id, compiled.compile_specs)


def compiled_in(program: ExportedProgram) -> dict[str, Any]:
    """Name of each part of a program that a delegate has compiled → the part, as ExecuTorch has it."""
    modules = program.graph_module.named_children()
    return {name: module for name, module in modules if hasattr(module, "processed_bytes")}


def words(error: BaseException) -> str:
    """Words of an exception and its causes, each in its first line, the outermost first."""
    return "; ".join(dict.fromkeys(map(_said, causes(error))))


def _said(error: BaseException) -> str:
    # In an error of ours the words of the runtime are in ``got``.
    said = error.got if isinstance(error, ProgramError) and error.got else error
    return f"{type(error).__name__}: {str(said).strip()}".partition("\n")[0].rstrip(": ")


class _Narrowing:
    """Search for the operators of a part that its delegate refuses."""

    def __init__(self, part: _Part, withheld: Withheld, fresh: Callable[[], Any], run: Run) -> None:
        self._run = run
        self._part = part
        self._withheld = withheld
        self._fresh = fresh
        operators = [node for node in part.program.graph.nodes if _is_operator(node)]
        self._keys = [*dict.fromkeys(map(withheld.key, operators))]
        self._named = {node.name: withheld.key(node) for node in operators}

    def refused(self, error: Exception) -> dict[str, str]:
        """The refused operators: those that the error names, if they are all, or else those of a search."""
        told = " ".join(str(one) for one in causes(error))
        named = {key: self._words(error) for name, key in self._named.items() if _has_word(told, name)}
        if named and self._error_without(named) is None:
            return named
        if self._error_without(self._keys) is not None:
            return dict.fromkeys(
                self._keys, self._words(error)
            )  # it fails without any operator: leave them all
        return self._searched(error)

    def _searched(self, error: Exception) -> dict[str, str]:
        """Find the first operator that is refused, by halving, then the next, until the rest is taken."""
        found: dict[str, str] = {}
        taken, last = 0, error
        while taken < len(self._keys):
            least, most = taken, len(self._keys)
            while most - least > 1:
                middle = (least + most) // 2
                raised = self._error_without([*found, *self._keys[middle:]])
                if raised is None:
                    least = middle
                else:
                    most, last = middle, raised
            found[self._keys[least]] = self._words(last)
            taken = most
            raised = self._error_without(found)
            if raised is None:
                break
            last = raised
        return found

    def _error_without(self, keys: Iterable[str]) -> Exception | None:
        """Exception of the delegate for the part without some operators."""
        from executorch.exir.backend.backend_api import to_backend

        withheld = self._withheld.beside(dict.fromkeys(keys, "tried without it"))
        partitioner = WithholdingPartitioner(self._fresh(), withheld)
        program = copy.deepcopy(self._part.program)
        for node in program.graph.nodes:
            node.meta.pop("delegation_tag", None)  # the part is divided again

        def compile_and_run() -> None:
            for one in compiled_in(to_backend(program, partitioner)).values():
                self._run(one)

        return _error_of(compile_and_run)

    def _words(self, error: Exception) -> str:
        return f"{self._part.delegate} refuses it: {words(error)}"


def _parts(partitioner: WithholdingPartitioner) -> Iterator[_Part]:
    """The parts that ExecuTorch had cut out when a delegate failed; none where all were compiled."""
    if partitioner.divided is None:
        return
    for node in partitioner.divided.graph.nodes:
        program = node.meta.get("submodule_program")
        if program is not None:
            yield _Part(program, node.meta["backend_id"], node.meta["compile_spec"])


def _is_operator(node: Node) -> bool:
    return bool(overload_name(node)) and not is_conversion(node)


def _has_word(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def _error_of(action: Callable[[], object]) -> Exception | None:
    """Exception that an action raises. A delegate compiles with code of its own, which raises anything."""
    try:
        action()
    except Exception as error:
        return error
    return None
