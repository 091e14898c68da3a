"""Operators that do something else in training than in evaluation, and which of the two a graph does.

Export writes the mode into each call: ``dropout(x, 0.1, True)``, ``batch_norm(…, True, 0.1, 1e-5)``. These
flags are all that differs, beside the counters of BatchNorm.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torchquilt.graph.node_values import arguments_of, operator_of, overload_name
from torchquilt.graph.subgraphs import nodes_of

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

_Arguments = Mapping[str, Any]


def _drops(arguments: _Arguments) -> bool:
    return bool(arguments["train"]) and arguments["p"] != 0


def _drops_between_layers(arguments: _Arguments) -> bool:
    return bool(arguments["train"]) and arguments["dropout"] != 0


# Without running statistics a norm takes those of its input in evaluation, too.
_MOVES_STATISTICS: dict[str, Callable[[_Arguments], bool]] = {
    "batch_norm": lambda arguments: bool(arguments["training"]) and arguments["running_mean"] is not None,
    "instance_norm": lambda arguments: (
        bool(arguments["use_input_stats"]) and arguments["running_mean"] is not None
    ),
}
_DROPS: dict[str, Callable[[_Arguments], bool]] = {
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), _drops),
    "native_dropout": lambda arguments: arguments["train"] is not False and arguments["p"] != 0,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _drops_between_layers),
    "rrelu": lambda arguments: bool(arguments["training"]),
    "scaled_dot_product_attention": lambda arguments: arguments["dropout_p"] != 0,
}

#: Operator → its argument that says whether it is in training.
_FLAGS = {
    "batch_norm": "training",
    "instance_norm": "use_input_stats",
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), "train"),
    **dict.fromkeys(("native_dropout", "lstm", "gru", "rnn_tanh", "rnn_relu"), "train"),
    "rrelu": "training",
    "scaled_dot_product_attention": "dropout_p",
}
#: ``node.meta`` of attention that was switched off: its probability in training, which is its flag, too.
_PROBABILITY_KEY = "torchquilt_dropout_p"
#: ``node.meta`` of an operator that ``train()`` and ``eval()`` switch.
_SWITCHED_KEY = "torchquilt_switched"
_NORMS = ("batch_norm", "instance_norm")


def moves_statistics(node: Node) -> bool:
    """Whether a node is a norm that takes the statistics of its input and keeps an average of them."""
    return _holds(_MOVES_STATISTICS, node)


def is_random(node: Node) -> bool:
    """Whether a node drops at random, as dropout does while a model is trained, or where that is meant."""
    return _holds(_DROPS, node)


def _holds(table: dict[str, Callable[[_Arguments], bool]], node: Node) -> bool:
    holds = table.get(_name(node))
    return holds is not None and holds(arguments_of(node))


def _name(node: Node) -> str:
    """``"dropout"`` for ``aten.dropout.default`` and ``aten.dropout_.default``; empty for what is no operator
    of ATen.
    """
    operator = operator_of(node)
    if operator is None:
        return ""
    namespace, _, name = operator._schema.name.partition("::")
    return str(name.removesuffix("_")) if namespace == "aten" else ""


# --- Switching ----------------------------------------------------------------------------------------------


def training_flag(node: Node) -> str | None:
    """Name of the argument that says whether a node is in training; None where it is the same in both.

    A norm without running statistics is, and attention that drops nothing.
    """
    name = _name(node)
    if name in _NORMS and arguments_of(node)["running_mean"] is None:
        return None
    flag = _FLAGS.get(name)
    return None if flag == "dropout_p" and training_value(node) == 0 else flag


def training_value(node: Node) -> Any:
    """Value of the flag of a node in training: True, or the probability of attention."""
    if _FLAGS.get(_name(node)) != "dropout_p":
        return True
    return node.meta.get(_PROBABILITY_KEY, arguments_of(node)["dropout_p"])


def is_in_training(node: Node) -> bool:
    """Whether the flag of a node, if it has one, says training."""
    flag = training_flag(node)
    return flag is not None and arguments_of(node)[flag] not in (False, 0.0)


def set_training(node: Node, value: bool) -> None:
    """Set the flag of a node; its other arguments stay as they are."""
    flag = training_flag(node)
    assert flag is not None
    if flag == "dropout_p":
        node.meta[_PROBABILITY_KEY] = training_value(node)
    given = training_value(node) if value else off_value(flag)
    names = [argument.name for argument in operator_of(node)._schema.arguments]
    position = names.index(flag)
    if position < len(node.args):
        node.update_arg(position, given)
    else:
        node.update_kwarg(flag, given)


def off_value(flag: str) -> Any:
    """Value of a flag in evaluation."""
    return 0.0 if flag == "dropout_p" else False


def always_draws(node: Node) -> bool:
    """Whether a node draws random numbers in either mode, as stochastic depth out of ``torch.rand`` does."""
    import torch

    operator = operator_of(node)
    if operator is None or _name(node) in _FLAGS:
        return False
    return torch.Tag.nondeterministic_seeded in operator.tags


def was_exported_in_training(model: GraphModule) -> bool:
    """Whether the flags of a graph say that the model was in training mode when it was exported.

    A norm that moves its statistics says so. Dropout that is on does where nothing contradicts it: other
    dropout that is off, or a norm that is in evaluation mode, says that it is meant to be on always.
    """
    flagged = [node for node in nodes_of(model) if training_flag(node) is not None]
    norms = [node for node in flagged if _name(node) in _NORMS]
    if norms:
        return any(map(is_in_training, norms))
    return bool(flagged) and all(map(is_in_training, flagged))


def counters(model: GraphModule) -> list[Node]:
    """The nodes that count the batches of a BatchNorm, as its module does in training mode; readers first.

    Of a BatchNorm that is called twice the second one counts on from the first.
    """
    found: dict[Node, None] = {}
    for node in reversed([*nodes_of(model)]):
        if _counts(node) and all(user in found for user in node.users):
            counted: Any = node.args[0]
            while _counts(counted):
                counted = counted.args[0]
            if str(getattr(counted, "target", "")).endswith("num_batches_tracked"):
                found[node] = None
    return [*found]


def _counts(value: Any) -> bool:
    """Whether a node adds one to a tensor in place, or nothing, where it was switched off."""
    return overload_name(value) == "aten.add_.Tensor" and value.args[1] in (0, 1)


def switch_counters(model: GraphModule, value: bool) -> None:
    """Let the counters of BatchNorms count, or stand still."""
    for node in counters(model):
        node.update_arg(1, int(value))


def mark_switched(model: GraphModule) -> list[Node]:
    """The nodes that ``train()`` and ``eval()`` switch; notes which they are, since their flags may change.

    Of a model that was exported in training mode those that were in training, of one in evaluation mode those
    that were not: dropout that was on then is meant, and so is a norm that is frozen in training mode.
    """
    flagged = [node for node in nodes_of(model) if training_flag(node) is not None]
    marked = list(filter(is_switched, flagged))
    if marked:
        return marked
    in_training = was_exported_in_training(model)
    found = [node for node in flagged if is_in_training(node) is in_training]
    for node in found:
        node.meta[_SWITCHED_KEY] = True
    return found


def is_switched(node: Node) -> bool:
    """Whether :func:`mark_switched` found a node."""
    return _SWITCHED_KEY in node.meta
