"""Data-movement operators: each element that they return is one that they were given.

What such an operator returns has nothing new for an observer that saw all that it was given. Dropout is among
them where it drops nothing.
"""

from __future__ import annotations

from torch.fx import Node

from torchquilt.graph.node_values import UNDECLARED_VIEWS, overload_name
from torchquilt.graph.training_mode import is_random
from torchquilt.support.operators import OPERATORS

# By their overloads, since another overload of the same name may compute (``aten.max.other``).
_MOVES = frozenset(
    (
        *(overload for operator in OPERATORS if operator.moves_data for overload in operator.overloads),
        *UNDECLARED_VIEWS,
    )
)


def moves_data_only(node: Node) -> bool:
    """Whether all elements that a call returns are elements of the tensors that it reads."""
    return node.op == "call_function" and overload_name(node) in _MOVES and not is_random(node)
