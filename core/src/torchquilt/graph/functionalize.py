"""Operators that write in place, in their functional form where that is the same.

``nn.ReLU(inplace=True)`` is exported as ``relu_``, which writes into the output of the convolution before it.
Once something stands between the two (an observer, a quantize and dequantize pair) the write would go
elsewhere, so it is turned into ``relu`` first, and later readers of the tensor read the result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node, map_arg

from torchquilt._internal.torch_private import FakeTensor
from torchquilt.errors import ModelError
from torchquilt.graph.aliasing import aliased_inputs
from torchquilt.graph.code_generation import outdate
from torchquilt.graph.edits import take_origin
from torchquilt.graph.node_values import (
    attribute,
    is_overwritten,
    operator_of,
    returns_view,
    writes,
    writes_to,
)
from torchquilt.graph.shared_storage import span_of


def unify_written_memory(model: GraphModule) -> GraphModule:
    """Let memory that the graph writes to be read under one name only; changes ``model``.

    Where a buffer is a part of another one, nothing in a graph says that who writes into the one changes
    the other. It does once the part is read as a view of the whole.

    Raises:
        ModelError: none of the tensors is the whole.
    """
    for nodes in _readers_of_one_memory(model):
        if len(nodes) > 1 and any(map(is_overwritten, nodes)):
            _read_as_views(model, nodes)
    return model


def _readers_of_one_memory(model: GraphModule) -> list[list[Node]]:
    """The nodes that read stored tensors, those together whose tensors overlap."""
    spans: list[tuple[tuple[int, int], int, Node]] = []
    for node in model.graph.find_nodes(op="get_attr"):
        value = attribute(model, str(node.target))
        span = span_of(value) if isinstance(value, torch.Tensor) else None
        if span is not None:
            spans.append((span, len(spans), node))
    found: list[list[Node]] = []
    reached = 0
    for (start, end), _, node in sorted(spans):
        if start >= reached:
            found.append([])
        found[-1].append(node)
        reached = max(reached, end)
    return found


def _read_as_views(model: GraphModule, nodes: list[Node]) -> None:
    """Read tensors that share memory as views of the one that is all of it."""
    values = {node: attribute(model, str(node.target)) for node in nodes}
    whole = next((node for node, value in values.items() if _is_all_of_its_memory(value)), None)
    if whole is None or len({value.dtype for value in values.values()}) > 1:
        raise ModelError(
            "The model writes into memory that several of its tensors are parts of.",
            node=", ".join(node.name for node in nodes),
            expected="one tensor of the same dtype that is all of the memory",
            got=", ".join(f"{node.target}: {tuple(value.shape)}" for node, value in values.items()),
            remedy="register the whole as a buffer, and take the parts out of it in forward",
        )
    for node in nodes:
        if node is whole:
            continue
        user = next(iter(node.users), node)
        with model.graph.inserting_before(user):
            view = model.graph.call_function(
                torch.ops.aten.as_strided.default,
                (whole, [*values[node].shape], [*values[node].stride()], values[node].storage_offset()),
            )
        take_origin(view, user)
        view.meta["val"] = node.meta.get("val")
        node.replace_all_uses_with(view)
        model.graph.erase_node(node)
    outdate(model)


def _is_all_of_its_memory(value: torch.Tensor) -> bool:
    return value.is_contiguous() and value.nbytes == value.untyped_storage().nbytes()


def make_functional(model: GraphModule) -> GraphModule:
    """Replace ``op_`` by ``op`` where only this graph can tell them apart; changes ``model``.

    A write into an input, a parameter or a buffer stays, since it is seen from outside. So does one
    into memory that is read afterwards by another way than the tensor that was written into: a view of
    it, or what it is a view of.
    """
    order = {node: number for number, node in enumerate(model.graph.nodes)}
    changed = False
    for node in list(model.graph.nodes):
        target = _functional_form(node)
        if target is None or not _is_private(node, order):
            continue
        written = node.args[0]
        for user in list(written.users):
            if order[user] > order[node]:
                user.replace_input_with(written, node)
        node.target = target
        changed = True
    if changed:
        outdate(model)
    return model


def _functional_form(node: Node) -> Any:
    """The operator that computes the same without writing, or None."""
    target = operator_of(node)
    if target is None or not node.args or not isinstance(node.args[0], Node):
        return None
    namespace, _, name = target._schema.name.partition("::")
    if namespace != "aten" or not name.endswith("_") or name.startswith("_"):
        return None
    if not writes_to(node, node.args[0]) or len(target._schema.returns) != 1:
        return None
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    overload = getattr(packet, target._overloadname, None)
    same = overload is not None and len(overload._schema.arguments) == len(target._schema.arguments)
    return overload if same and _keeps_form(node, overload) else None


def _keeps_form(node: Node, overload: Any) -> bool:
    """Whether the operator returns the same in the dtype and in the strides of what is written to.

    In place a result is cast. Strides matter to views of it; a slice has gaps, and a new tensor has none.
    """
    value = node.meta.get("val")
    if not isinstance(value, FakeTensor):
        return False
    with value.fake_mode:
        result = overload(*map_arg(node.args, _recorded), **map_arg(node.kwargs, _recorded))
    if not isinstance(result, torch.Tensor) or result.dtype != value.dtype:
        return False
    # As text, since comparing dynamic sizes would ask for guards.
    return str(result.stride()) == str(value.stride())


def _recorded(source: Node) -> Any:
    """The fake value that export recorded for a node."""
    return source.meta.get("val")


def _is_private(write: Node, order: dict[Node, int]) -> bool:
    """Whether only its result shows the write: no other node reads that memory from then on.

    The tensor that is written into may be a view; its later readers are going to read the result.
    """
    written: Any = write.args[0]
    whole = written
    while returns_view(whole):
        sources = aliased_inputs(whole)
        if len(sources) != 1:
            return False
        (whole,) = sources
    if whole.op != "call_function" or writes(whole):
        return False
    pending = [whole]
    while pending:
        tensor = pending.pop()
        for user in tensor.users:
            if order[user] > order[write] and tensor is not written:
                return False
            if order[user] < order[write] and (returns_view(user) or writes(user)):
                pending.append(user)
    return True
