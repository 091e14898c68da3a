"""Parts of an operator pattern: each has alternatives and inputs, and may be optional.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Literal

import attrs

from torchquilt.graph.node_values import overload_name
from torchquilt.spec.config import Role
from torchquilt.support.operators import Operand, Operator

if TYPE_CHECKING:
    from torch.fx import Node


@attrs.frozen
class Value:
    """A tensor that enters a pattern. Equal values are one tensor, like ``x`` in ``x * f(x)``.

    Args:
        role: the role of the tensor; empty if it stays in float.
        name: tells values of one role apart.
    """

    role: Role | Literal[""] = "input_activation"
    name: str = ""


@attrs.frozen
class Part:
    """An operator of a pattern, and its inputs. Make one with :func:`part`.

    Args:
        alternatives: the operator, or several; a match has one of them.
        inputs: its first arguments: other parts, values, or Python numbers. The two inputs of an addition or
            a product may come in either order.
        does_the_work: whether the part is the anchor of the pattern.
        is_optional: whether it may be missing; its reader then reads its first input, or else a value.
        may_be_read_elsewhere: whether nodes outside of the match may read its output.
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
        """The operands after the inputs, with the roles that one of the alternatives declares.

        Only the part that does the work and parts that read no other part have such operands.
        """
        if self.parts and not self.does_the_work:
            return ()
        return tuple(operand for operand in operator.operands if operand.position >= len(self.inputs))

    def all_parts(self) -> Iterator[Part]:
        """All parts that this one depends on, and this one, in order of data flow."""
        for each in self.parts:
            yield from each.all_parts()
        yield self

    def paths(self) -> Iterator[tuple[Part, ...]]:
        """The parts on the way from each part that reads no other one to this one."""
        for each in self.parts:
            yield from ((*path, self) for path in each.paths())
        if not self.parts:
            yield (self,)

    def variants(self) -> Iterator[Part | Value | float]:
        """The tree with each choice of its optional parts; the tree with all of them comes first."""
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
    """Make a :class:`Part`: an operator of a pattern, and its inputs. The arguments are explained there."""
    alternatives = (operator,) if isinstance(operator, Operator) else operator
    return Part(alternatives, inputs, does_the_work, is_optional, may_be_read_elsewhere)
