"""The few edits of a graph that we need: copy it, store tensors beside it, put nodes in, clean up.

Names of stored tensors are dotted paths, as in a state dict (``encoder.layer.0.weight``).
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature
from torch.fx import Graph, GraphModule, Node

from torchquilt._internal.torch_private import FakeTensor, FakeTensorMode, pytree
from torchquilt.graph.code_generation import copy_without_code, outdate
from torchquilt.graph.node_values import (
    HELPS,
    STORED_FOR,
    WRITTEN_FOR,
    attribute,
    operator_of,
    overload_name,
    writes_to,
)
from torchquilt.graph.shared_storage import copies_in_common, tensors_of, written_tensors
from torchquilt.graph.signature import take_checks
from torchquilt.graph.subgraphs import call_of

# What a new node takes over from the node it serves, beside its own value.
_ORIGIN_KEYS = ("nn_module_stack", "stack_trace", "torch_fn", "from_node", "custom", WRITTEN_FOR)


def copy_model(model: GraphModule, kept: Iterable[object] = ()) -> GraphModule:
    """A copy whose graph and modules are its own and whose tensors are those of the original.

    So the copy may get other weights under the same names without the original noticing, and no
    weight is stored twice. Only what the graph writes to (counters, caches) is copied, and with it whatever
    shares memory with it. No tensor of the copy asks for gradients: with them, control flow would trace its
    subgraphs in order to differentiate them, instead of running them.

    Args:
        model: the original.
        kept: parts of it that the copy holds, too, instead of copies.
    """
    tensors = tensors_of(model)
    shared: dict[int, Any] = {key: _without_gradient(tensor) for key, tensor in tensors.items()}
    shared |= copies_in_common(tensors.values(), written_tensors(model))
    for module in model.modules():
        objects = (value for value in vars(module).values() if isinstance(value, torch.ScriptObject))
        shared.update((id(value), value) for value in objects)
    shared.update((id(part), part) for part in kept)
    with warnings.catch_warnings():
        # torch's own copying of the input structure warns about how torch pickles it.
        warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
        copied = copy_without_code(model, shared)
    take_checks(copied, model)
    keep_out_of_state(model, copied)
    return copied


def copied_graph(graph: Graph) -> tuple[Graph, dict[Node, Node]]:
    """The graph of an exported program once more, and node → its copy.

    The copies have the names of the nodes, by which the signature of the program knows them, also where a new
    graph would choose others; and the origins of the nodes.
    """
    made = Graph()
    nodes: dict[Node, Node] = {}
    output = made.output(made.graph_copy(graph, nodes))
    output.meta = copy.copy(graph.output_node().meta)
    for node, one in nodes.items():
        one.name, one.meta = node.name, copy.copy(node.meta)
    made._codegen = graph._codegen
    return made, nodes


def with_graph(
    program: ExportedProgram,
    graph: Graph,
    signature: ExportGraphSignature | None = None,
    root: GraphModule | None = None,
) -> ExportedProgram:
    """An exported program with another graph, maybe another signature and other subgraphs, those of ``root``.

    Tensors are shared, but not the tables that have them, from which some take what they use up.
    """
    return ExportedProgram(
        root=root or program.graph_module,
        graph=graph,
        graph_signature=signature or copy.deepcopy(program.graph_signature),
        state_dict=dict(program.state_dict),
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=None,
        constants=dict(program.constants),
        verifiers=program.verifiers,
    )


def _without_gradient(value: torch.Tensor) -> torch.Tensor:
    if isinstance(value, torch.nn.Parameter) and value.requires_grad:
        return torch.nn.Parameter(value.detach(), requires_grad=False)
    return value


def keep_out_of_state(model: GraphModule, copied: GraphModule) -> None:
    """Let what is in no state dict of a model be in none of its copy, where torch makes buffers of it."""
    modules = dict(copied.named_modules(remove_duplicate=False))
    for path, module in model.named_modules(remove_duplicate=False):
        plain = (name for name, value in vars(module).items() if isinstance(value, torch.Tensor))
        names = {*module._non_persistent_buffers_set, *plain}
        if path in modules:
            modules[path]._non_persistent_buffers_set |= names & modules[path]._buffers.keys()


def free_name(model: GraphModule, wanted: str) -> str:
    """``wanted``, or ``wanted_1``, ``wanted_2`` … where that is taken."""
    if not _has_attribute(model, wanted):
        return wanted
    # Numbers are given out one after the other, so the first free one is found by halving.
    taken, free = 0, 1
    while _has_attribute(model, f"{wanted}_{free}"):
        taken, free = free, 2 * free
    while free - taken > 1:
        middle = (taken + free) // 2
        if _has_attribute(model, f"{wanted}_{middle}"):
            taken = middle
        else:
            free = middle
    return f"{wanted}_{free}"


def _has_attribute(model: GraphModule, name: str) -> bool:
    try:
        attribute(model, name)
    except AttributeError:
        return False
    return True


def store_tensor(model: GraphModule, name: str, value: torch.Tensor) -> None:
    """Store a tensor under a dotted name in place of what is there; parameters stay parameters.

    Args:
        model: the graph module that is edited.
        name: dotted name.
        value: the tensor.
    """
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
    return fake_of(value, known.fake_mode) if isinstance(known, FakeTensor) else value


def fake_cast(node: Node, dtype: torch.dtype) -> Any:
    """The fake tensor that a node was recorded with, in another dtype; what else it was, as it is."""
    known = node.meta.get("val")
    return fake_of(known, known.fake_mode, dtype) if isinstance(known, FakeTensor) else known


def fake_of(value: torch.Tensor, mode: FakeTensorMode, dtype: torch.dtype | None = None) -> FakeTensor:
    """A fake tensor with shape, strides and device of ``value``.

    It is put together by hand. To let the mode run ``empty_strided`` takes six times as long.
    """
    meta = torch.empty_strided(value.shape, value.stride(), dtype=dtype or value.dtype, device="meta")
    return FakeTensor(mode, meta, value.device)


def take_origin(new: Node, served: Node) -> None:
    """Let a new node say where it comes from: the module and source line of the node it serves.

    Args:
        new: the new node.
        served: the node that it serves.
    """
    for key in _ORIGIN_KEYS:
        if key in served.meta:
            new.meta[key] = copy.copy(served.meta[key])


def read_tensor(model: GraphModule, name: str, value: torch.Tensor, before: Node) -> Node:
    """Store a tensor and return a new ``get_attr`` node that reads it, right before another node.

    Args:
        model: the graph module that is edited.
        name: name of the tensor in the model.
        value: the tensor.
        before: the node before which it is read.
    """
    store_tensor(model, name, value)
    with model.graph.inserting_before(before):
        node = model.graph.get_attr(name)
    take_origin(node, before)
    node.meta["val"] = fake_like(before, value)
    return node


def lift_scalar(
    model: GraphModule, node: Node, position: int, value: complex, before: Node | None = None
) -> Node:
    """Put a constant tensor (0-d, of the node's dtype) where an argument is a Python number; return it.

    It is read right before the node, or before an earlier one.
    """
    dtype = node.meta["val"].dtype
    name = free_name(model, f"{node.name}_scalar")
    constant = read_tensor(model, name, torch.tensor(value, dtype=dtype), before=before or node)
    node.update_arg(position, constant)
    return constant


def write_as(node: Node, target: Any, *args: Any) -> None:
    """Let a node call another operator that returns the same; rules stay about the one that was there.

    Args:
        node: the node.
        target: the overload to call.
        *args: arguments of the call.
    """
    node.meta.setdefault(WRITTEN_FOR, overload_name(node))
    node.target, node.args, node.kwargs = target, args, {}


def call_before(model: GraphModule, node: Node, target: Any, *args: Any) -> Node:
    """A new node that calls an operator right before another node, in its service.

    Args:
        model: the graph module that is edited.
        node: the node that is served; the new one takes its origin.
        target: the overload to call, such as ``torch.ops.aten.relu.default``.
        *args: arguments of the call.
    """
    with model.graph.inserting_before(node):
        return _call_for(model, node, target, args)


def call_behind(model: GraphModule, node: Node, target: Any, *args: Any) -> Node:
    """A new node that calls an operator right behind another node, in its service; its readers read this.

    Args:
        model: the graph module that is edited.
        node: the node that is served; the new one takes its origin.
        target: the overload to call.
        *args: arguments of the call behind the first, which is ``node``.
    """
    readers = list(node.users)
    with model.graph.inserting_after(node):
        new = _call_for(model, node, target, (node, *args))
    for reader in readers:
        reader.replace_input_with(node, new)
    return new


def _call_for(model: GraphModule, served: Node, target: Any, args: tuple[Any, ...]) -> Node:
    new = model.graph.call_function(target, args)
    take_origin(new, served)
    new.meta.setdefault(WRITTEN_FOR, overload_name(served))
    new.meta[HELPS] = served.name
    new.meta["val"] = value_of_call(target, args)
    return new


def write_as_another_shape(node: Node, target: Any, *args: Any) -> None:
    """Let a node call an operator that returns a tensor of another shape; else see :func:`write_as`."""
    write_as(node, target, *args)
    node.meta["val"] = value_of_call(target, args)


def value_of_call(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Any:
    """The fake tensor that an operator returns for those of its arguments."""
    values, named = torch.fx.map_arg((args, dict(kwargs or {})), lambda source: source.meta["val"])
    fake = next(value for value in pytree.tree_leaves((values, named)) if isinstance(value, FakeTensor))
    with fake.fake_mode:
        return target(*values, **named)


def own_copy(model: GraphModule, user: Node, source: Node) -> None:
    """Let ``user`` read a copy of the stored tensor that ``source`` reads, under a name of its own."""
    value = attribute(model, str(source.target)).detach().clone()
    copied = torch.nn.Parameter(value, requires_grad=False)
    name = free_name(model, f"{source.target}_{user.name}")
    read = read_tensor(model, name, copied, before=user)
    read.meta[STORED_FOR] = source.meta.get(STORED_FOR, source)
    user.replace_input_with(source, read)


def redirect(user: Node, old: Node, new: Node) -> None:
    """Let ``user`` read ``new`` instead of ``old``, except where it writes to ``old``."""
    if not writes_to(user, old):
        user.replace_input_with(old, new)


def erase_unused(node: Node) -> None:
    """Erase a node without readers, and then its inputs, as far as they have no other readers."""
    pending = [node]
    while pending:
        current = pending.pop()
        if current._erased or current.users or not _is_read_only(current):
            continue
        inputs = current.all_input_nodes
        current.graph.erase_node(current)
        pending.extend(inputs)


def drop_dead_nodes(model: GraphModule) -> GraphModule:
    """Erase what is computed and not used, which export keeps; changes ``model``.

    What checks something, writes somewhere or draws random numbers stays. So does what only reads a stored
    tensor: the names of a tensor that has several are in the same order in every export, used or not.
    """
    size = len(model.graph.nodes)
    for node in reversed(list(model.graph.nodes)):
        if not node.users and node.op != "get_attr":
            erase_unused(node)
    if len(model.graph.nodes) < size:
        outdate(model)
    return model


def _is_read_only(node: Node) -> bool:
    """Whether nothing but the value of a node depends on its being there."""
    if node.op == "get_attr" or node.target is operator.getitem:
        return True
    call = call_of(node)
    if call is not None:
        return all(_is_harmless(inside) for graph in call.graphs() for inside in graph.nodes)
    called = operator_of(node)
    # An operator that returns nothing is there for what it does; torch's table lacks some (_assert_async).
    return called is not None and bool(called._schema.returns) and not node.is_impure()


def _is_harmless(node: Node) -> bool:
    """Whether a node of a subgraph is no reason to run it; what it asserts of dtypes is about its own
    values.
    """
    if node.op in ("placeholder", "output") or overload_name(node) == "aten._assert_tensor_metadata.default":
        return True
    return _is_read_only(node)


def drop_unused_tensors(model: GraphModule) -> None:
    """Forget stored tensors that no node reads, and modules that are empty without them.

    Modules that the graph calls or hands to an operator (branches of control flow) are left as they are.
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
    for name in _plain_tensors(module):
        if path + name not in targets:
            del vars(module)[name]
    for name, child in list(module._modules.items()):
        if child is None or path + name in targets:
            continue
        _drop_below(child, f"{path}{name}.", targets)
        if not (child._parameters or child._buffers or child._modules or _plain_tensors(child)):
            del module._modules[name]


def _plain_tensors(module: torch.nn.Module) -> list[str]:
    """Names of tensors that a module has as attributes like any other."""
    return [name for name, value in vars(module).items() if isinstance(value, torch.Tensor)]
