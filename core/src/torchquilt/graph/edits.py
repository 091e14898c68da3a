"""The few edits of a graph that we need: copy it, store tensors beside it, put nodes in, clean up.

Names of stored tensors are dotted paths, as in a state dict (``encoder.layer.0.weight``).
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch._subclasses import FakeTensor
from torch.fx import GraphModule, Node

from torchquilt.graph.memory import copies_in_common, tensors_of
from torchquilt.graph.values import (
    WRITTEN_ELSEWHERE,
    attribute,
    is_overwritten,
    overload_name,
    writes_to,
)

# What a new node takes over from the node it serves, beside its own value.
_ORIGIN_KEYS = ("nn_module_stack", "stack_trace", "torch_fn", "from_node", "custom")


def copy_model(model: GraphModule) -> GraphModule:
    """A copy whose graph and modules are its own and whose tensors are those of the original.

    So the copy may get other weights under the same names without the original noticing, and no
    weight is stored twice. Only buffers that the graph writes to (counters, caches) are copied, with
    the tensors that share memory with them.
    """
    written = [
        attribute(model, str(node.target))
        for node in model.graph.find_nodes(op="get_attr")
        if is_overwritten(node)
    ]
    tensors = tensors_of(model)
    copied = copies_in_common(tensors.values(), written)
    shared: dict[int, Any] = {**tensors, **copied}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, torch.ScriptObject):
                shared[id(value)] = value
    with warnings.catch_warnings():
        # torch's own copying of the input structure warns about how torch pickles it.
        warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
        result: GraphModule = copy.deepcopy(model, shared)
    for node in result.graph.find_nodes(op="get_attr") if copied else ():
        if id(attribute(model, str(node.target))) in copied:
            node.meta[WRITTEN_ELSEWHERE] = True
    _keep_out_of_state(model, result)
    return result


def _keep_out_of_state(model: GraphModule, copied: GraphModule) -> None:
    """Let what is in no state dict of a model be in none of its copy, where torch makes buffers of it."""
    modules = dict(copied.named_modules(remove_duplicate=False))
    for path, module in model.named_modules(remove_duplicate=False):
        plain = (name for name, value in vars(module).items() if isinstance(value, torch.Tensor))
        names = {*module._non_persistent_buffers_set, *plain}
        if path in modules:
            modules[path]._non_persistent_buffers_set |= names & modules[path]._buffers.keys()


def free_name(model: GraphModule, wanted: str) -> str:
    """``wanted``, or ``wanted_1``, ``wanted_2`` … where that is taken."""
    name, number = wanted, 0
    while _has_attribute(model, name):
        number += 1
        name = f"{wanted}_{number}"
    return name


def _has_attribute(model: GraphModule, name: str) -> bool:
    try:
        attribute(model, name)
    except AttributeError:
        return False
    return True


def store_tensor(model: GraphModule, name: str, value: torch.Tensor) -> None:
    """Store a tensor under a dotted name in place of what is there; parameters stay parameters."""
    path, _, last = name.rpartition(".")
    holder = _submodule(model, path)
    if isinstance(value, torch.nn.Parameter):
        holder._buffers.pop(last, None)
        vars(holder).pop(last, None)  # a constant that export lifted is a plain attribute
        holder.register_parameter(last, value)
    else:
        holder._parameters.pop(last, None)
        vars(holder).pop(last, None)
        holder.register_buffer(last, value)


def _submodule(model: torch.nn.Module, path: str) -> torch.nn.Module:
    """The module at a path, made where it is missing (export keeps none that has no tensor)."""
    module = model
    for name in path.split(".") if path else ():
        if not hasattr(module, name):
            module.add_module(name, torch.nn.Module())
        module = getattr(module, name)
    return module


def fake_like(node: Node, value: torch.Tensor) -> torch.Tensor:
    """``value`` as a fake tensor of the mode in which the rest of the graph was recorded."""
    known = node.meta.get("val")
    if isinstance(known, FakeTensor):
        return known.fake_mode.from_tensor(value, static_shapes=True)
    return value


def take_origin(new: Node, served: Node) -> None:
    """Let a new node say where it comes from: the module and source line of the node it serves."""
    for key in _ORIGIN_KEYS:
        if key in served.meta:
            new.meta[key] = copy.copy(served.meta[key])


def read_tensor(model: GraphModule, name: str, value: torch.Tensor, before: Node) -> Node:
    """Store a tensor and return a new ``get_attr`` node that reads it, right before another node."""
    store_tensor(model, name, value)
    with model.graph.inserting_before(before):
        node = model.graph.get_attr(name)
    node.meta["val"] = fake_like(before, value)
    return node


def lift_scalar(model: GraphModule, node: Node, position: int, value: complex) -> None:
    """Put a constant tensor (0-d, of the node's dtype) where an argument is a Python number."""
    dtype = node.meta["val"].dtype
    name = free_name(model, f"{node.name}_scalar")
    constant = read_tensor(model, name, torch.tensor(value, dtype=dtype), before=node)
    node.update_arg(position, constant)


def own_copy(model: GraphModule, user: Node, source: Node) -> None:
    """Let ``user`` read a copy of the stored tensor that ``source`` reads, under a name of its own."""
    value = attribute(model, str(source.target)).detach().clone()
    copied = torch.nn.Parameter(value, requires_grad=False)
    name = free_name(model, str(source.target))
    user.replace_input_with(source, read_tensor(model, name, copied, before=user))


def redirect(user: Node, old: Node, new: Node) -> None:
    """Let ``user`` read ``new`` instead of ``old``, except where it writes to ``old``."""
    if not writes_to(user, old):
        user.replace_input_with(old, new)


def erase_unused(node: Node) -> None:
    """Erase a node that nobody reads, and then what it was computed from, as far as nobody reads that."""
    pending = [node]
    while pending:
        current = pending.pop()
        readable = current.op == "get_attr" or (overload_name(current) and not current.is_impure())
        if current.users or not readable or current._erased:
            continue
        inputs = current.all_input_nodes
        current.graph.erase_node(current)
        pending.extend(inputs)


def drop_unused_tensors(model: GraphModule) -> None:
    """Forget stored tensors that no node reads, and modules that are empty without them.

    Modules that the graph calls or passes on (branches of control flow) are left as they are.
    """
    graph = model.graph
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    targets = {str(node.target) for node in graph.nodes if node.op in ("get_attr", "call_module")}
    _drop_below(model, "", targets)


def _drop_below(module: torch.nn.Module, path: str, targets: set[str]) -> None:
    for table in (module._parameters, module._buffers):
        for name in [name for name in table if path + name not in targets]:
            del table[name]
            module._non_persistent_buffers_set.discard(name)
    plain = [name for name, value in vars(module).items() if isinstance(value, torch.Tensor)]
    for name in plain:
        if path + name not in targets:
            del vars(module)[name]
    for name, child in list(module._modules.items()):
        if child is None or path + name in targets:
            continue
        _drop_below(child, f"{path}{name}.", targets)
        if not (child._parameters or child._buffers or child._modules):
            del module._modules[name]
