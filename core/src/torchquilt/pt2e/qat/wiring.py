"""From a prepared model to one that trains: passes over the graph.

Convert reads a prepared model, in which weights are constants. A model that trains has modules instead: fake
quantize for each observer point, a BatchNorm for each folded one, a switch for dropout. Nodes keep their
names and annotations, also on the way back (``unwiring``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch
from torch.fx import GraphModule, Node

from torchquilt.errors import ModelError
from torchquilt.graph.batch_norm_folding import UNFOLD_KEY, Folded
from torchquilt.graph.code_generation import outdate
from torchquilt.graph.constant_folding import constant_value
from torchquilt.graph.edits import fake_like, free_name, store_tensor, take_origin
from torchquilt.graph.module_scope import module_path
from torchquilt.graph.node_values import (
    STORED_FOR,
    argument_of,
    arguments_of,
    attribute,
    operator_of,
    overload_name,
    rank,
)
from torchquilt.graph.subgraphs import Region, call_of, regions
from torchquilt.graph.training_mode import (
    counters,
    is_in_training,
    is_switched,
    mark_switched,
    set_training,
    training_flag,
    training_value,
)
from torchquilt.pt2e.observer_points import QuantizationPoint
from torchquilt.pt2e.qat.batch_norm import BatchNorm, FoldedBatchNorm
from torchquilt.pt2e.qat.points import TrainingPoint
from torchquilt.pt2e.qat.stored_tensors import Copied, FloatWeight
from torchquilt.pt2e.qat.switched import SwitchedOperator

#: ``node.meta`` of a node that computes a tensor: the name under which convert stores it.
ASSIGNED_KEY = "torchquilt_assigned"

#: ``node.meta`` of a call of a module: the operator that it stands for, its literals and its name.
OPERATOR_KEY = "torchquilt_operator"


def to_evaluation(model: GraphModule) -> GraphModule:
    """Bring a model into the form of evaluation, and note which operators are switched; changes ``model``."""
    for node in mark_switched(model):
        if is_in_training(node):
            set_training(node, False)
    for node in counters(model):
        node.graph.erase_node(node)
    for region in regions(model):
        outdate(region.module)
    return model


def let_norms_train(model: GraphModule) -> GraphModule:
    """Unfold each BatchNorm that was folded, and let those that were not train; changes ``model``."""
    for region in regions(model):
        nodes = list(region.module.graph.nodes)
        folded: dict[Node, Folded] = {
            node: node.meta.pop(UNFOLD_KEY) for node in nodes if UNFOLD_KEY in node.meta
        }
        # Find the nodes first: unfolding adds others that read tensors of the same names.
        read = {str(node.target): node for node in region.module.graph.find_nodes(op="get_attr")}
        reads = {node: [read[one.folded_weight], read[one.folded_bias]] for node, one in folded.items()}
        for node in nodes:
            if node in folded:
                _unfold(region.module, node, folded[node], *reads[node])
            elif overload_name(node) == "aten.batch_norm.default" and is_switched(node):
                _as_module(region.module, node)
    return model


def _unfold(model: GraphModule, node: Node, folded: Folded, weight_read: Node, bias_read: Node) -> None:
    own_weight = argument_of(node, "weight")
    channel_dim = 1 if "conv" in overload_name(node) or rank(node) == 2 else -1
    norm = FoldedBatchNorm(
        folded.fold,
        folded.momentum,
        folded.mean.rpartition(".")[0],
        channel_dim=channel_dim,
    )
    name = free_name(model, f"batch_norm_{_plain(norm.path)}")
    model.add_module(name, norm)
    _drop_tensors(model, {folded.folded_weight, folded.folded_bias} - {*folded.tensors})
    for path, tensor in folded.tensors.items():
        store_tensor(model, path, tensor)
    with model.graph.inserting_before(min(weight_read, bias_read)):
        known: dict[Any, Any] = {}
        read = {path: _get(model, path, node, known) for path in _paths(model, folded)}
    gamma, beta, mean, variance = (
        read.get(path or "") for path in (folded.gamma, folded.beta, folded.mean, folded.variance)
    )
    bias = read.get(folded.bias or "")
    with model.graph.inserting_before(min(weight_read, bias_read)):
        factor = _step(model, name, ("factor", gamma, variance), node, variance)
    _turn(weight_read, name, ("folded", read[folded.weight], factor))
    _turn(bias_read, name, ("bias", bias, gamma, beta, mean, variance))
    for call in _points_before(model, own_weight):
        with model.graph.inserting_before(call):
            around = _step(model, name, ("around", factor), node, factor)
        call.args = (*(*call.args, True)[:2], around)
    with model.graph.inserting_after(node):
        counter = read.get(_counter_of(folded.mean))
        arguments = ("normalized", node, bias, gamma, beta, mean, variance, counter)
        normalized = _step(model, name, arguments, node, node)
    node.replace_all_uses_with(normalized, lambda user: user is not normalized)
    outdate(model)


def _drop_tensors(model: GraphModule, names: set[str]) -> None:
    for name in names:
        path, _, last = name.rpartition(".")
        holder = model.get_submodule(path)
        holder._parameters.pop(last, None)
        holder._buffers.pop(last, None)


def _plain(path: str) -> str:
    return re.sub(r"\W", "_", path) or "root"


def _paths(model: GraphModule, folded: Folded) -> list[str]:
    names = (folded.weight, folded.bias, folded.gamma, folded.beta, folded.mean, folded.variance)
    found = [name for name in names if name is not None]
    counter = _counter_of(folded.mean)
    return [*dict.fromkeys(found), *([counter] if _has(model, counter) else [])]


def _counter_of(mean: str) -> str:
    return ".".join([*mean.split(".")[:-1], "num_batches_tracked"])


def _has(model: GraphModule, name: str) -> bool:
    try:
        return isinstance(attribute(model, name), torch.Tensor)
    except AttributeError:
        return False


def _points_before(model: GraphModule, node: Node) -> Iterator[Node]:
    """The calls of observer points between a weight and a node."""
    while node.all_input_nodes:
        is_point = _point_at(model, node) is not None
        if node.op != "call_function" and not is_point:
            return
        if is_point:
            yield node
        node = node.all_input_nodes[0]


def _point_at(model: GraphModule, node: Node) -> Any:
    held = model._modules.get(str(node.target)) if node.op == "call_module" else None
    return held if isinstance(held, QuantizationPoint) else None


def _get(model: GraphModule, path: str, serves: Node, known: dict[Any, Any] | None = None) -> Node:
    """A node that reads a stored tensor.

    Args:
        model: what it is stored in.
        path: its name.
        serves: the node for whose sake it is read.
        known: fake tensors made so far, by dtype, shape, strides and device, since making one takes time.
    """
    node = model.graph.get_attr(path)
    take_origin(node, serves)
    value = attribute(model, path)
    known = {} if known is None else known
    key = (value.dtype, value.shape, value.stride(), value.device)
    if key not in known:
        known[key] = fake_like(serves, value)
    node.meta["val"] = known[key]
    return node


def _step(model: GraphModule, name: str, arguments: tuple[Any, ...], serves: Node, like: Any) -> Node:
    node = model.graph.call_module(name, arguments)
    take_origin(node, serves)
    node.meta["val"] = like.meta.get("val")
    return node


def _turn(node: Node, name: str, arguments: tuple[Any, ...]) -> None:
    """Let a node that reads a stored tensor call a module that computes it; its readers stay.

    ``node.meta`` keeps the name of the tensor, for the way back.
    """
    node.meta[ASSIGNED_KEY] = str(node.target)
    node.op, node.target, node.args = "call_module", name, arguments


def _as_module(model: GraphModule, node: Node) -> None:
    """Replace a BatchNorm by a module that trains."""
    values = arguments_of(node)
    mean = values["running_mean"]
    path = str(mean.target).rpartition(".")[0] if mean.op == "get_attr" else module_path(node)
    name = free_name(model, f"batch_norm_{_plain(path)}")
    model.add_module(name, BatchNorm(values["momentum"], values["eps"], path))
    counter = _counter_of(str(mean.target))
    roles = ("input", "weight", "bias", "running_mean", "running_var")
    with model.graph.inserting_before(node):
        read = _get(model, counter, node) if mean.op == "get_attr" and _has(model, counter) else None
        new = _step(model, name, (*(values[role] for role in roles), read), node, node)
    _replace(node, new)
    outdate(model)


def _replace(node: Node, new: Node) -> None:
    """Let a call of a module replace an operator, and remember the operator."""
    new.meta.update(node.meta)
    new.meta[OPERATOR_KEY] = (node.target, _literals(node), node.name)
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


def _literals(node: Node) -> dict[str, Any]:
    """The arguments of an operator that are no tensors."""
    return {
        name: value
        for name, value in arguments_of(node).items()
        if not isinstance(value, Node) and not _holds_nodes(value)
    }


def _holds_nodes(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(isinstance(item, Node) for item in value)


def let_switches_follow(model: GraphModule) -> GraphModule:
    """Let each operator that is switched follow the mode of the model; changes ``model``."""
    for region in regions(model):
        for node in list(region.module.graph.nodes):
            if is_switched(node) and training_flag(node) is not None:
                _let_follow(region.module, node)
    return model


def _let_follow(model: GraphModule, node: Node) -> None:
    flag = training_flag(node)
    assert flag is not None
    names = [argument.name for argument in operator_of(node)._schema.arguments]
    values = arguments_of(node)
    before = names[: names.index(flag)]
    behind = names[names.index(flag) + 1 :]
    name = free_name(model, f"switched_{node.name}")
    model.add_module(name, SwitchedOperator(overload_name(node), flag, training_value(node)))
    with model.graph.inserting_before(node):
        new = model.graph.call_module(
            name, tuple(values[one] for one in before), {one: values[one] for one in behind}
        )
    _replace(node, new)
    outdate(model)


#: Operators whose order of multiplication depends on whether their operands ask for gradients.
_MULTIPLIES = ("aten.linear.default", "aten.matmul.default")


def let_float_weights_rest(model: GraphModule) -> GraphModule:
    """Let weights in float ask for no gradients in evaluation; changes ``model``."""
    for region in regions(model):
        for node in list(region.module.graph.nodes):
            if overload_name(node) not in _MULTIPLIES:
                continue
            for source in node.args[:2]:
                if isinstance(source, Node) and source.op == "get_attr":
                    name = free_name(region.module, f"float_weight_{node.name}")
                    region.module.add_module(name, FloatWeight())
                    with region.module.graph.inserting_before(node):
                        new = _step(region.module, name, (source,), node, source)
                    node.replace_input_with(source, new)
                    outdate(region.module)
    return model


def let_copies_follow(model: GraphModule) -> GraphModule:
    """Compute each stored copy of a tensor from the original; changes ``model``."""
    for region in regions(model):
        for node in region.module.graph.find_nodes(op="get_attr"):
            source: Node | None = node.meta.get(STORED_FOR)
            if source is None:
                continue
            if source._erased:
                assert source.op == "get_attr"
                with region.module.graph.inserting_before(node):
                    source = _get(region.module, str(source.target), node)
            value = attribute(region.module, str(node.target))
            name = free_name(region.module, f"copied_{node.name}")
            region.module.add_module(name, Copied(tuple(value.shape)))
            if node < source:
                node.prepend(source)
            copied = str(node.target)
            _turn(node, name, (source,))
            _drop_tensors(region.module, {copied})
            outdate(region.module)
    return model


@attrs.frozen(eq=False)
class Calls:
    """Calls of an observer point.

    Args:
        region: the region that they are in.
        nodes: the calls.
        points: names of all observer points of the region.
    """

    region: Region
    nodes: list[Node]
    points: frozenset[str]

    def values(self) -> list[torch.Tensor]:
        """The constants that the observer point is called with, each once."""
        origins = dict.fromkeys(map(self._behind_points, self.nodes))
        return [constant_value(self.region.module, origin, self.points) for origin in origins]

    def _behind_points(self, node: Node) -> Node:
        while node.op == "call_module" and str(node.target) in self.points:
            (node,) = node.all_input_nodes
        return node


def replace_points(
    model: GraphModule, make: Callable[[QuantizationPoint[Any], Calls], TrainingPoint]
) -> GraphModule:
    """Replace the module at each observer point; changes ``model``.

    Args:
        model: a prepared model.
        make: makes the module for an observer point, from its calls.
    """
    for region in regions(model):
        calls = _calls_of_points(region.module)
        if calls:
            _check_is_run(region)
        names = frozenset(calls)  # before any is replaced
        for name, nodes in calls.items():
            region.module.add_module(name, make(getattr(region.module, name), Calls(region, nodes, names)))
    return model


def _check_is_run(region: Region) -> None:
    """Refuse to train operators in a subgraph that control flow traces."""
    if region.caller is None:
        return
    call = call_of(region.caller)
    operator = "" if call is None else call.operator.name
    if operator not in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
        raise ModelError(
            f"Operators in a subgraph of {operator or 'control flow'} cannot be trained with quantization: "
            "torch traces it to differentiate it, and nothing can be observed there.",
            node=region.path,
            expected="no quantized operators in subgraphs of control flow",
            got=f"annotated operators in {region.path}",
            remedy="leave the modules in it in float with a rule, or write it without control flow",
        )


def _calls_of_points(model: GraphModule) -> dict[str, list[Node]]:
    calls: dict[str, list[Node]] = {}
    for node in model.graph.find_nodes(op="call_module"):
        if _point_at(model, node) is not None:
            calls.setdefault(str(node.target), []).append(node)
    return calls
