"""What is worth quantizing: cheap operators between float ones are not, if they need more conversions.

Rows of a table that are not ``worth_alone`` (an addition, in contrast to a convolution) are decided over the
whole graph. Claims that hand each other integers, or read the same ones, make an island. It is quantized

1. if one of its rows is worth it alone,
2. if a rule asks for one of its operators by the operator's own name,
3. if it reads or is read by something that another quantizer made integers of, or
4. if it computes more often than tensors are converted between it and float operators.

Conversions at the inputs and outputs of the model are not counted: whoever runs it may hand in integers. What
only moves numbers does not count as computing. Else the island stays in float.

The cost is linear in the edges of the graph. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from torchquilt.annotation import annotation_of
from torchquilt.config import QuantizationConfig
from torchquilt.graph.values import tensor_of
from torchquilt.pattern import Match, Reject
from torchquilt.rules import ObjectTypeRule, Rule
from torchquilt.spec import DerivedQuantizationSpec, QuantizationSpec
from torchquilt.support import Sharing, SupportRow

if TYPE_CHECKING:
    from torch.fx import Node


class Claim(Protocol):
    """What is asked of a claim, see :class:`torchquilt.claims.Claim`."""

    @property
    def match(self) -> Match:
        """Where it stands."""

    @property
    def row(self) -> SupportRow:
        """What claims it."""

    @property
    def rule(self) -> Rule:
        """Who asked."""

    @property
    def config(self) -> QuantizationConfig:
        """For what."""


def not_worth_it(claims: Iterable[Claim]) -> dict[Node, Reject]:
    """Anchor → why it is left in float, for each claim that costs more conversions than it saves."""
    found: dict[Node, Reject] = {}
    for island in _islands(tuple(claims)):
        if any(map(_is_worth_it, island)):
            continue
        computing = sum(claim.row.sharing is not Sharing.PASSED_ON for claim in island)
        conversions = _conversions(island)
        if computing > conversions:
            continue
        for claim in island:
            name = claim.match.anchor.name
            text = (
                f"{name} is one of {computing} cheap operators that hang together"
                if computing > 1
                else f"{name} is cheap"
            )
            text += f", with {conversions} conversions between it and float operators"
            found[claim.match.anchor] = Reject("not_worth_it", claim.match.nodes, text)
    return found


def _islands(claims: tuple[Claim, ...]) -> list[list[Claim]]:
    """The claims that hand each other integers, or read the same ones, in groups."""
    has = {claim.match.output: number for number, claim in enumerate(claims) if _makes_integers(claim)}
    neighbours: list[list[int]] = [[] for _ in claims]
    for number, claim in enumerate(claims):
        for tensor in _activations(claim) if _reads_integers(claim) else ():
            other = has.setdefault(tensor, number)  # who makes it, or else the first to read it
            neighbours[number].append(other)
            neighbours[other].append(number)
    islands: list[list[Claim]] = []
    seen: set[int] = set()
    for start in range(len(claims)):
        if start in seen:
            continue
        seen.add(start)
        reached = [start]
        for number in reached:  # grows while it is walked
            new = dict.fromkeys(other for other in neighbours[number] if other not in seen)
            seen.update(new)
            reached += new
        islands.append([claims[number] for number in reached])
    return islands


def _activations(claim: Claim) -> tuple[Node, ...]:
    return claim.match.inputs("input_activation")


def _makes_integers(claim: Claim) -> bool:
    return claim.row.sharing is not Sharing.NONE or claim.config.output_activation is not None


def _reads_integers(claim: Claim) -> bool:
    spec = claim.config.input_activation
    return spec is not None and not spec.is_dynamic


def _is_worth_it(claim: Claim) -> bool:
    if claim.row.worth_alone:
        return True
    if isinstance(claim.rule, ObjectTypeRule) and claim.rule.type.kind != "module":
        return True
    if any(_is_made_of_integers(tensor) for tensor in _activations(claim)):
        return True
    return any(_reads_as_integers(user, claim.match.output) for user in claim.match.output.users)


def _is_made_of_integers(tensor: Node) -> bool:
    annotation = annotation_of(tensor)
    return annotation is not None and annotation.output_qspec is not None


def _reads_as_integers(user: Node, tensor: Node) -> bool:
    annotation = annotation_of(user)
    spec = annotation.input_qspec_map.get(tensor) if annotation else None
    if isinstance(spec, QuantizationSpec):
        return not spec.is_dynamic
    return spec is not None and not isinstance(spec, DerivedQuantizationSpec)


def _conversions(island: list[Claim]) -> int:
    """How many tensors are converted between an island and float operators."""
    inside = {node for claim in island for node in claim.match.nodes}
    made = {claim.match.output for claim in island}
    entering = {
        tensor
        for claim in island
        for tensor in _activations(claim)
        if tensor not in made and tensor.op == "call_function" and not claim.match.is_constant(tensor)
    }
    leaving = {
        claim.match.output
        for claim in island
        if any(user not in inside and _is_operator(user) for user in claim.match.output.users)
    }
    return len(entering) + len(leaving)


def _is_operator(user: Node) -> bool:
    return user.op == "call_function" and tensor_of(user) is not None
