"""Operators that do something else in training than in evaluation, and whether a node does the former.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torchquilt.graph.values import arguments_of, operator_of

if TYPE_CHECKING:
    from torch.fx import Node

_Arguments = Mapping[str, Any]


def _drops(arguments: _Arguments) -> bool:
    return bool(arguments["train"]) and arguments["p"] != 0


def _drops_between_layers(arguments: _Arguments) -> bool:
    return bool(arguments["train"]) and arguments["dropout"] != 0


# Without running statistics a norm takes those of its input in evaluation, too.
_TRAINS: dict[str, Callable[[_Arguments], bool]] = {
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), _drops),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _drops_between_layers),
    "rrelu": lambda arguments: bool(arguments["training"]),
    "batch_norm": lambda arguments: bool(arguments["training"]) and arguments["running_mean"] is not None,
    "instance_norm": lambda arguments: (
        bool(arguments["use_input_stats"]) and arguments["running_mean"] is not None
    ),
    "scaled_dot_product_attention": lambda arguments: arguments["dropout_p"] != 0,
}


def is_in_training(node: Node) -> bool:
    """Whether a node draws random numbers or moves statistics as it does only while a model is trained."""
    operator = operator_of(node)
    if operator is None:
        return False
    namespace, _, name = operator._schema.name.partition("::")
    trains = _TRAINS.get(name.removesuffix("_")) if namespace == "aten" else None
    return trains is not None and trains(arguments_of(node))
