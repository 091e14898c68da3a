"""Parts of an operator pattern: operators with alternatives, what each reads, and which may be missing.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING

import attrs

from torchquilt.graph.node_values import overload_name
from torchquilt.support.operators import Operand, Operator

if TYPE_CHECKING:
    from torch.fx import Node


@attrs.frozen
class Value:
    """A tensor that enters a pattern. Equal values of a pattern are one tensor, as the ``x`` of ``x * f(x)``.

    Args:
        role: its role; empty for one that stays in float.
        name: tells values of one role apart.
    """

    role: str = "input_activation"
    name: str = ""


@attrs.frozen
class Part:
    """An operator of a pattern, and what it reads. Made with :func:`part`.

    Args:
        alternatives: the operator, or several of which one stands there.
        inputs: its first arguments: other parts, values, or Python numbers. The two of an addition or a
            product may change places.
        does_the_work: the part is the anchor of the pattern.
        is_optional: it may be missing; what reads it reads its first input then.
        may_be_read_elsewhere: its node may have readers outside of the match.
    """

    alternatives: tuple[Operator, ...]
    inputs: tuple[Part | Value | float, ...] = ()
    does_the_work: bool = False
    is_optional: bool = False
    may_be_read_elsewhere: bool = False

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts among the inputs."""
        return tuple(each for each in self.inputs if isinstance(each, Part))

    def declared_by(self, operator: Operator) -> tuple[Operand, ...]:
        """The operands behind the inputs that have the roles which one of the alternatives declares.

        Those of what does the work, and of parts that read no other part.
        """
        if self.parts and not self.does_the_work:
            return ()
        return tuple(operand for operand in operator.operands if operand.position >= len(self.inputs))

    def all_parts(self) -> Iterator[Part]:
        """The parts below this one, and this one, in order of data flow."""
        for each in self.parts:
            yield from each.all_parts()
        yield self

    def path(self) -> tuple[Part, ...]:
        """The parts from the first one to this one, of which each reads the one before it."""
        found = [self]
        while found[-1].parts:
            found.append(found[-1].parts[0])
        return tuple(reversed(found))

    def variants(self) -> Iterator[Part | Value | float]:
        """The tree with each choice of its optional parts, that with all of them first."""
        inputs = [tuple(each.variants()) if isinstance(each, Part) else (each,) for each in self.inputs]
        for chosen in product(*inputs):
            yield attrs.evolve(self, inputs=chosen)
        if self.is_optional:
            yield from inputs[0] if inputs else (Value(),)

    def is_called_by(self, node: Node) -> bool:
        """Whether a node calls one of the alternatives."""
        name = overload_name(node)
        return any(name in operator.overloads for operator in self.alternatives)

    def __str__(self) -> str:
        return " or ".join(operator.name for operator in self.alternatives)


def part(
    operator: Operator | tuple[Operator, ...],
    *inputs: Part | Value | float,
    does_the_work: bool = False,
    is_optional: bool = False,
    may_be_read_elsewhere: bool = False,
) -> Part:
    """Make a :class:`Part`, whose arguments these are: an operator of a pattern, and what it reads."""
    alternatives = (operator,) if isinstance(operator, Operator) else operator
    return Part(alternatives, inputs, does_the_work, is_optional, may_be_read_elsewhere)
