"""Stored tensors that lie in the same memory: one tensor under two names, slices of one tensor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import GraphModule

from torchquilt.graph.node_values import attribute, is_overwritten
from torchquilt.graph.subgraphs import regions


def span_of(tensor: torch.Tensor) -> tuple[int, int] | None:
    """First and last address (exclusive) of a tensor's elements, or None where it has none of its own kind.

    Only plain tensors have: no fake or sparse ones, none of other classes, and none without elements.
    Where elements lie apart, what lies between them counts, too.
    """
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
        return None
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return None
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def tensors_of(model: torch.nn.Module) -> dict[int, torch.Tensor]:
    """Every parameter, buffer and plain attribute that is a tensor, by its id."""
    found: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(value, torch.Tensor):
                found[id(value)] = value
    return found


def overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two spans have an address in common."""
    return one[0] < other[1] and other[0] < one[1]


def written_tensors(model: GraphModule) -> list[torch.Tensor]:
    """The stored tensors that the graph, or a subgraph in it, writes into."""
    return [
        attribute(region.module, str(node.target))
        for region in regions(model)
        for node in region.module.graph.find_nodes(op="get_attr")
        if is_overwritten(node)
    ]


def copies_in_common(
    tensors: Iterable[torch.Tensor], written: Iterable[torch.Tensor]
) -> dict[int, torch.Tensor]:
    """Copies of the tensors that are written to, and of all that would see it; by the id of the original.

    Copies share memory with each other where the originals do: a slice of a cache is a slice of the
    copy of the cache. They ask for no gradients.
    """
    found = {id(tensor): tensor for tensor in written}
    spans = [span for span in map(span_of, found.values()) if span is not None]
    for tensor in tensors if spans else ():
        span = span_of(tensor)
        if span is not None and any(overlap(span, other) for other in spans):
            found[id(tensor)] = tensor
    storages: dict[int, torch.UntypedStorage] = {}
    return {key: _copy(tensor, storages) for key, tensor in found.items()}


def _copy(tensor: torch.Tensor, storages: dict[int, torch.UntypedStorage]) -> torch.Tensor:
    """A copy of a tensor, in the copy of its storage."""
    if span_of(tensor) is None:
        copied = tensor.detach().clone()
    else:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            storages[storage.data_ptr()] = storage.clone()  # type: ignore[no-untyped-call]
        copied = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        copied.set_(storages[storage.data_ptr()], tensor.storage_offset(), tensor.shape, tensor.stride())
    return _alike(copied, tensor)


def compact(model: GraphModule) -> None:
    """Give stored tensors memory of their own where they are a part of a larger one; changes ``model``.

    A slice keeps alive the whole tensor that it was cut from, and is saved with it. Where all that is
    left of a memory is smaller than it, each tensor in it is copied, in the strides that it has.
    Tensors that the model writes to, and so all that share memory with them, stay where they are.
    """
    written = {id(tensor) for tensor in written_tensors(model)}
    in_storage: dict[int, list[torch.Tensor]] = {}
    for tensor in tensors_of(model).values():
        if span_of(tensor) is not None:
            in_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
    moved: dict[int, torch.Tensor] = {}
    for tensors in in_storage.values():
        used = sum(end - start for start, end in {span_of(tensor) or (0, 0) for tensor in tensors})
        if used < tensors[0].untyped_storage().nbytes() and written.isdisjoint(map(id, tensors)):
            moved.update((id(tensor), _apart(tensor)) for tensor in tensors)
    for module in model.modules() if moved else ():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, vars(module))
        for table in tables:
            table.update({name: moved[id(value)] for name, value in table.items() if id(value) in moved})


def _apart(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor in memory of its own, with the same strides."""
    copied = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    copied.copy_(tensor.detach())
    return _alike(copied, tensor)


def _alike(copied: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A parameter where the original is one."""
    return (
        torch.nn.Parameter(copied, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else copied
    )
