"""Finding what OpenVINO refuses to compile as integers, by leaving quantizes in operators of floats."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torchquilt import LoweringError
from torchquilt.backend import is_conversion
from torchquilt_openvino.compiling import compiled
from torchquilt_openvino.conversion import Converted, converted
from torchquilt_openvino.form import quantizes_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

_LOG = logging.getLogger(__name__)
#: After so many, all that is left of the program is in float.
_MOST = 16


def compiled_where_it_can(program: ExportedProgram) -> tuple[Converted, Any, Mapping[str, str]]:
    """The model of a program, the same compiled, and the operators that are in float since it refuses them.

    Raises:
        LoweringError: OpenVINO has no translation of an operator, or does not compile it in float either.
    """
    refused: dict[str, str] = {}
    in_floats: set[str] = set()
    while True:
        made = converted(program, in_floats)
        try:
            return made, compiled(made.model), refused
        except RuntimeError as error:
            words = _words(error)
            quantizes = [node for node in quantizes_of(program) if node.name not in in_floats]
            if not quantizes or _fails(program, {node.name for node in quantizes} | in_floats):
                raise _does_not_compile(words) from error
            found = quantizes if len(in_floats) >= _MOST else [_first(program, quantizes, in_floats)]
            in_floats |= {node.name for node in found}
            for node in found:
                _LOG.info("OpenVINO refuses %s as integers: %s", node.name, words)
                refused.update(dict.fromkeys(_operators_of(node), words))


def _first(program: ExportedProgram, quantizes: Sequence[Node], in_floats: Collection[str]) -> Node:
    """The first quantize up to which the program is refused, while those behind it are in floats."""
    low, high = 0, len(quantizes)  # up to ``low`` it compiles, up to ``high`` it does not
    while high - low > 1:
        middle = (low + high) // 2
        behind = {node.name for node in quantizes[middle:]}
        if _fails(program, behind | set(in_floats)):
            high = middle
        else:
            low = middle
    return quantizes[high - 1]


def _fails(program: ExportedProgram, in_floats: Collection[str]) -> bool:
    try:
        compiled(converted(program, in_floats).model)
    except RuntimeError as error:
        return not isinstance(error, LoweringError)
    return False


def _operators_of(quantize: Node) -> list[str]:
    """The operators that read what a quantize makes."""
    found, waiting = [], [*quantize.users]
    for node in waiting:  # grows while it is walked
        if is_conversion(node):
            waiting += node.users
        elif node.op == "call_function":
            found.append(node.name)
    return found


def _words(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("Exception from")]
    return " ".join((said or lines)[:2])


def _does_not_compile(words: str) -> LoweringError:
    return LoweringError(
        "OpenVINO does not compile the program.",
        expected="operators that its CPU plugin has kernels for",
        got=words,
        remedy="find the part: lower parts of the model by themselves, or write it with other operators",
    )
