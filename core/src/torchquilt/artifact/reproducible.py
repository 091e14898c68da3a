"""Repeatable programs: without traces of the process that saves them, and of memory that is not theirs.

Importing this module does not import torch.
"""

from __future__ import annotations

import contextlib
import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torchquilt.graph.subgraphs import nodes_of

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

#: Where a tensor lies in its storage, and how.
_View = tuple[Any, ...]


@contextlib.contextmanager
def numbered_graphs(program: ExportedProgram) -> Iterator[None]:
    """Number the graphs that nodes say they come from, while the block runs.

    torch names a graph by its address, and writes that to files: two runs of one program would differ.
    """
    numbers: dict[int, int] = {}
    before = [
        (node.meta, node.meta["from_node"]) for node in nodes_of(program.graph_module) if _origins(node)
    ]
    for meta, sources in before:
        meta["from_node"] = copy.deepcopy(sources)
        _number(meta["from_node"], numbers)
    try:
        yield
    finally:
        for meta, sources in before:
            meta["from_node"] = sources


def _origins(node: Any) -> list[Any]:
    return node.meta.get("from_node") or []


def _number(sources: Iterable[Any], numbers: dict[int, int]) -> None:
    for source in sources:
        if source.node_info is not None:
            source.node_info.graph_id = numbers.setdefault(source.graph_id, len(numbers))
        source._dict = None  # what torch would write, kept from before
        _number(source.from_node, numbers)


def without_unused_memory(program: ExportedProgram) -> ExportedProgram:
    """The program with copies of tensors that are a part of a larger memory, all of which would be written.

    A slice of a data set as example input, or of a table as a constant, would bring the whole of it along.
    The program is not changed; without such tensors it is returned as it is.
    """
    import torch

    from torchquilt._internal.torch_private import pytree

    examples = pytree.tree_leaves(program.example_inputs)
    stored = [*program.state_dict.values(), *program.constants.values()]
    copies = {**_copies(examples), **_copies(stored)}
    if not copies:
        return program

    def own(value: Any) -> Any:
        return copies.get(id(value), value)

    made = copy.copy(program)
    made._example_inputs = pytree.tree_map_only(torch.Tensor, own, program.example_inputs)
    made._state_dict = {name: own(value) for name, value in program.state_dict.items()}
    made._constants = {name: own(value) for name, value in program.constants.items()}
    return made


def _copies(values: Iterable[Any]) -> dict[int, torch.Tensor]:
    """Id of each tensor that is copied → its copy. What is one tensor under two names stays one."""
    import torch

    by_memory: dict[int, dict[_View, list[torch.Tensor]]] = defaultdict(lambda: defaultdict(list))
    for value in values:
        is_plain = type(value) in (torch.Tensor, torch.nn.Parameter)
        if is_plain and value.layout is torch.strided and not value.is_meta:
            view = (value.storage_offset(), value.shape, value.stride(), value.dtype)
            by_memory[value.untyped_storage()._cdata][view].append(value)
    found: dict[int, torch.Tensor] = {}
    for views in by_memory.values():
        one = next(iter(views.values()))[0]
        if one.untyped_storage().nbytes() > sum(same[0].nbytes for same in views.values()):
            for same in views.values():
                own = _own_copy(same[0])
                found.update((id(value), own) for value in same)
    return found


def _own_copy(value: torch.Tensor) -> torch.Tensor:
    import torch

    copied = value.detach().clone()
    if isinstance(value, torch.nn.Parameter):
        return torch.nn.Parameter(copied, requires_grad=value.requires_grad)
    return copied
