"""Operators that do something else in training than in evaluation, and whether a node does the former.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torchquilt.graph.node_values import arguments_of, operator_of

if TYPE_CHECKING:
    from torch.fx import Node

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


def moves_statistics(node: Node) -> bool:
    """Whether a node is a norm that takes the statistics of its input and keeps an average of them."""
    return _holds(_MOVES_STATISTICS, node)


def is_random(node: Node) -> bool:
    """Whether a node drops at random, as dropout does while a model is trained, or where that is meant."""
    return _holds(_DROPS, node)


def _holds(table: dict[str, Callable[[_Arguments], bool]], node: Node) -> bool:
    operator = operator_of(node)
    if operator is None:
        return False
    namespace, _, name = operator._schema.name.partition("::")
    holds = table.get(name.removesuffix("_")) if namespace == "aten" else None
    return holds is not None and holds(arguments_of(node))
