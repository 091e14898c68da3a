"""Models of patterns that are not chains: one call for each choice of optional parts and alternatives."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, product
from typing import Any

import attrs
import torch
from torch import nn

from torchquilt.support.operators import Operator
from torchquilt.support.parts import Part, Value
from torchquilt.support.pattern import OperatorPattern
from torchquilt.testing.operators import Call, Sizes, calls_of, uniform

#: A limit on the calls of one pattern, since choices multiply.
_MOST_CHOICES = 8


def is_chain(pattern: OperatorPattern) -> bool:
    """Whether the kit can call the operators of a pattern one after the other."""
    return all(
        len(each.inputs) < 2
        and each.inputs == each.parts
        and len(each.alternatives) == 1
        and not each.is_optional
        for each in pattern.root.all_parts()
    )


def tree_calls(pattern: OperatorPattern, activation: torch.Tensor, sizes: Sizes) -> list[Call]:
    """Calls of a pattern with an activation: one for each choice of optional parts and alternatives."""
    trees = (variant for variant in pattern.root.variants() if isinstance(variant, Part))
    roots = (chosen for tree in trees for chosen in _alternatives(tree))
    return [_call(root, activation, sizes) for root in islice(roots, _MOST_CHOICES)]


def _alternatives(each: Part) -> Iterator[Part]:
    inputs = [tuple(_alternatives(one)) if isinstance(one, Part) else (one,) for one in each.inputs]
    for operator in each.alternatives:
        for chosen in product(*inputs):
            yield attrs.evolve(each, alternatives=(operator,), inputs=chosen)


def _call(root: Part, activation: torch.Tensor, sizes: Sizes) -> Call:
    tree = Tree(root, activation, sizes)
    label = " ".join(each.alternatives[0].name for each in root.all_parts())
    return Call(label, tree, tuple(tree.made))


class Tree(nn.Module):
    """A pattern as a module. Its first value or operator reads the activation; further values are inputs.

    Args:
        root: the last part, without alternatives and optional parts.
        activation: an example of the activation, which the sizes of the weights follow.
        sizes: the source of all other sizes.
    """

    def __init__(self, root: Part, activation: torch.Tensor, sizes: Sizes) -> None:
        super().__init__()
        self.root = root
        self.steps = nn.ModuleDict()
        self.functions: dict[str, Any] = {}
        self.made: list[torch.Tensor] = []
        self._sizes: Sizes | None = sizes
        with torch.no_grad():
            self.forward(activation)
        self._sizes = None

    def forward(self, x: torch.Tensor, *extras: torch.Tensor) -> torch.Tensor:
        """Compute the tree."""
        return self._compute(self.root, "root", x, {}, list(extras))

    def _compute(
        self,
        each: Part,
        path: str,
        x: torch.Tensor,
        values: dict[Value, torch.Tensor],
        extras: list[torch.Tensor],
    ) -> torch.Tensor:
        computed = {
            index: self._compute(one, f"{path}_{index}", x, values, extras)
            for index, one in enumerate(each.inputs)
            if isinstance(one, Part)
        }
        if not each.inputs or (len(each.inputs) == len(computed) == 1):
            return self._called(each.alternatives[0], path, computed.get(0, x))
        like = next(iter(computed.values()), x)
        arguments = [
            computed.get(index, self._value(one, x, like, bool(computed), values, extras))
            for index, one in enumerate(each.inputs)
        ]
        found: torch.Tensor = _function(each.alternatives[0])(*arguments)
        return found

    def _called(self, operator: Operator, path: str, x: torch.Tensor) -> torch.Tensor:
        """The result of an operator with one activation, called in the kit's own way if it has one."""
        if self._sizes is not None:
            known = calls_of(operator, x, self._sizes)
            function = known[0].function if known else _function(operator)
            self.functions[path] = function
            if isinstance(function, nn.Module):
                self.steps[path] = function
        found: torch.Tensor = self.functions[path](x)
        return found

    def _value(
        self,
        value: Any,
        x: torch.Tensor,
        like: torch.Tensor,
        is_behind: bool,
        values: dict[Value, torch.Tensor],
        extras: list[torch.Tensor],
    ) -> Any:
        if not isinstance(value, Value):
            return value
        if value not in values:
            if not values and not is_behind:
                values[value] = x
            elif self._sizes is not None:
                values[value] = uniform(*like.shape)
                self.made.append(values[value])
            else:
                values[value] = extras.pop(0)
        return values[value]


def _function(operator: Operator) -> Any:
    namespace, name, overload = operator.overloads[0].split(".")
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)
