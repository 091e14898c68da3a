"""Profitability: cheap operators beside float ones stay in float, unless quantizing them saves conversions.

A row that is not ``profitable_alone`` (an addition, in contrast to a convolution) is decided over the whole
graph. Two claims belong to one island if one reads the integers of the other, or both read the same integers.
An island is quantized

1. if one of its rows is profitable alone,
2. if a rule asks for one of its operators by the operator's own name,
3. if it shares a quantized tensor with an operator of another quantizer, or
4. if it has more computing operators than conversions between it and float operators.

Otherwise it stays in float. Conversions at the program inputs and outputs do not count, since a caller may
pass integers. Data-movement operators do not count as computing.

Within an island that is quantized for one of the first three reasons, a cheap operator whose output has
quantization parameters of its own stays in float if that needs no more conversions. The residual addition of
a transformer, between a linear and a LayerNorm, is such an operator. One conversion is needed either way: of
the linear's output, or of the sum. Quantizing the addition would round both summands and the sum, and the sum
is all that the model carries from layer to layer. The additions of a convolutional network read and feed
integers, and are quantized. What a kernel makes that returns floats as well takes no conversion in float, see
:mod:`torchquilt.quantizers.float_outputs`.

The cost is linear in the edges of the graph. Importing this module does not import torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import attrs

from torchquilt._internal.connected import connected
from torchquilt.graph.node_values import tensor_of
from torchquilt.intent.rules import ObjectTypeRule
from torchquilt.quantizers.claim import Claim
from torchquilt.spec.annotation import annotation_of
from torchquilt.spec.qspec import DerivedQuantizationSpec, QuantizationSpec
from torchquilt.support.pattern import Reject
from torchquilt.support.table import Sharing

if TYPE_CHECKING:
    from torch.fx import Node


def not_profitable(claims: Iterable[Claim]) -> dict[Node, Reject]:
    """Find the claims that cost more conversions than they save: anchor → reason.

    Args:
        claims: in the order of the graph.
    """
    found: dict[Node, Reject] = {}
    kept: list[Claim] = []
    for island in _islands(tuple(claims)):
        if any(map(_is_profitable, island)):
            kept += island
            continue
        computing = sum(claim.row.sharing is not Sharing.FOLLOWS_INPUT for claim in island)
        conversions = _conversions(island)
        if computing > conversions:
            continue
        for claim in island:
            name = claim.match.anchor.name
            text = (
                f"{name} and {computing - 1} other cheap operators would take"
                if computing > 1
                else f"{name} is cheap, and would take"
            )
            text += f" {conversions} conversions to and from float operators as integers, and none in float"
            found[claim.match.anchor] = Reject("not_profitable", claim.match.nodes, text)
    return found | _IslandEdges(kept).left


def _islands(claims: tuple[Claim, ...]) -> list[list[Claim]]:
    """Groups of claims that read the integers of each other, or the same integers."""
    first_claims = {
        claim.match.output: number for number, claim in enumerate(claims) if makes_integers(claim)
    }
    links = [
        (number, first_claims.setdefault(tensor, number))  # makes it, or is the first to read it
        for number, claim in enumerate(claims)
        if _reads_integers(claim)
        for tensor in _activations(claim)
    ]
    return [[claims[number] for number in group] for group in connected(range(len(claims)), links)]


def _activations(claim: Claim) -> tuple[Node, ...]:
    return claim.match.inputs("input_activation")


def makes_integers(claim: Claim) -> bool:
    """Whether what a claim returns has quantization parameters."""
    return claim.row.sharing is not Sharing.NONE or claim.config.output_activation is not None


def _reads_integers(claim: Claim) -> bool:
    spec = claim.config.input_activation
    return spec is not None and not spec.is_dynamic


def _is_profitable(claim: Claim) -> bool:
    if claim.row.profitable_alone or is_asked_for_by_name(claim):
        return True
    if any(_is_made_of_integers(tensor) for tensor in _activations(claim)):
        return True
    return any(_reads_as_integers(user, claim.match.output) for user in claim.match.output.users)


def is_asked_for_by_name(claim: Claim) -> bool:
    """Whether the rule of a claim names its operator, and not a module or the whole model."""
    return isinstance(claim.rule, ObjectTypeRule) and claim.rule.type.kind != "module"


def _is_made_of_integers(tensor: Node) -> bool:
    annotation = annotation_of(tensor)
    return annotation is not None and annotation.output_qspec is not None


def _reads_as_integers(user: Node, tensor: Node) -> bool:
    annotation = annotation_of(user)
    spec = annotation.input_qspec_map.get(tensor) if annotation else None
    if isinstance(spec, QuantizationSpec):
        return not spec.is_dynamic
    return spec is not None and not isinstance(spec, DerivedQuantizationSpec)


def _is_operator(user: Node) -> bool:
    return user.op == "call_function" and tensor_of(user) is not None


def _conversions(island: list[Claim]) -> int:
    """Number of tensors that are converted between an island and float operators."""
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


@attrs.define(eq=False)
class Tensor:
    """A tensor at the edge of an island, and how it is read.

    Args:
        maker: the claim that makes it.
        is_integers: whether a claim or another quantizer makes it as integers.
        is_converted: whether quantizing it costs a conversion: not for program inputs and constants.
        readers: the claims that read it as integers, by their ``id``.
        as_integers: how many nodes read it as integers, for claims or for other quantizers.
        in_float: how many operators read it in float.
    """

    maker: Claim | None
    is_integers: bool
    is_converted: bool
    readers: dict[int, Claim]
    as_integers: int = 0
    in_float: int = 0


class _IslandEdges:
    """Edges of quantized islands: the cheap operators there that need no more conversions in float.

    Each operator is asked once, and again when a neighbour is left in float. Leaving one is final, so
    this ends.
    """

    def __init__(self, claims: list[Claim]) -> None:
        #: anchor → why it is left in float
        self.left: dict[Node, Reject] = {}
        self._tensors = tensors_around(claims)
        waiting = [claim for claim in claims if _may_be_left(claim)]
        while waiting:
            claim = waiting.pop()  # from the last one: most edges are at the end of an island
            if claim.match.anchor not in self.left:
                waiting += self._leave_or_keep(claim)

    def _leave_or_keep(self, claim: Claim) -> list[Claim]:
        """Leave a claim and its followers in float if that takes no more conversions.

        Returns:
            The claims to ask again.
        """
        group = self._with_followers(claim)
        quantized, in_float = self._conversions(group)
        if not quantized or in_float > quantized or any(map(is_asked_for_by_name, group)):
            return []
        name = claim.match.anchor.name
        text = f"{name} is cheap, and would take {quantized} conversions as integers, {in_float} in float"
        changed: list[Tensor] = []
        for each in group:
            follows = "" if each is claim else f"{each.match.anchor.name} shares its parameters; "
            self.left[each.match.anchor] = Reject("not_profitable", each.match.nodes, follows + text)
            changed += self._read_in_float(each)
        return [other for tensor in changed for other in self._around(tensor)]

    def _with_followers(self, claim: Claim) -> list[Claim]:
        group = [claim]
        for each in group:  # grows while it is walked
            readers = self._tensors[each.match.output].readers.values()
            group += (reader for reader in readers if reader.row.sharing is Sharing.FOLLOWS_INPUT)
        return group

    def _conversions(self, group: list[Claim]) -> tuple[int, int]:
        """Number of conversions around a claim and its followers: as integers, and in float."""
        within = Counter(node for each in group[1:] for node in _reads(each).elements())
        quantized = in_float = 0
        for node in (each.match.output for each in group):
            quantized += self._tensors[node].in_float > 0
            in_float += self._tensors[node].as_integers > within[node]
        for node, number in _reads(group[0]).items():
            tensor = self._tensors[node]
            if self._can_be_made_in_float(tensor, number):
                quantized += tensor.in_float > 0
            elif tensor.is_integers:
                in_float += tensor.in_float == 0
            else:
                quantized += tensor.is_converted and tensor.as_integers == number
        return quantized, in_float

    def _can_be_made_in_float(self, tensor: Tensor, number: int) -> bool:
        """Whether the kernel of a tensor returns floats once a claim that reads it in so many nodes does not
        read integers.
        """
        while tensor.as_integers == number and tensor.maker is not None:
            if tensor.maker.row.sharing is not Sharing.FOLLOWS_INPUT:
                return tensor.maker.row.may_return_float
            tensor, number = self._tensors[_activations(tensor.maker)[0]], 1
        return False

    def _read_in_float(self, claim: Claim) -> Iterator[Tensor]:
        """Take a claim out of the counts. Yields each tensor whose other claims now cost more or less."""
        output = self._tensors[claim.match.output]
        output.is_integers = False
        yield output
        for node, number in _reads(claim).items():
            tensor = self._tensors[node]
            del tensor.readers[id(claim)]
            tensor.as_integers -= number
            tensor.in_float += number
            if tensor.in_float == number or tensor.as_integers <= 1:
                yield tensor

    def _around(self, tensor: Tensor) -> Iterator[Claim]:
        """The claims that make or read a tensor and may be left in float."""
        maker = tensor.maker
        while maker is not None and maker.row.sharing is Sharing.FOLLOWS_INPUT:
            maker = self._tensors[_activations(maker)[0]].maker
        for claim in (*tensor.readers.values(), *(() if maker is None else (maker,))):
            if _may_be_left(claim):
                yield claim


def tensors_around(claims: Sequence[Claim]) -> dict[Node, Tensor]:
    """Tensors that claims read and make, by node."""
    makers = {claim.match.output: claim for claim in claims if makes_integers(claim)}
    readers: dict[Node, dict[int, Claim]] = {output: {} for output in makers}
    edges: set[tuple[Node, Node]] = set()
    for claim in filter(_reads_integers, claims):
        edges.update(_edges(claim))
        for node in _reads(claim):
            readers.setdefault(node, {})[id(claim)] = claim
    found: dict[Node, Tensor] = {}
    for node, by in readers.items():
        maker = makers.get(node)
        is_converted = node.op == "call_function" and not any(
            claim.match.is_constant(node) for claim in by.values()
        )
        tensor = Tensor(maker, maker is not None or _is_made_of_integers(node), is_converted, by)
        for user in node.users:
            if (node, user) in edges or _reads_as_integers(user, node):
                tensor.as_integers += 1
            elif _is_operator(user):
                tensor.in_float += 1
        found[node] = tensor
    return found


def _edges(claim: Claim) -> set[tuple[Node, Node]]:
    """Tensor and node, for each activation that a claim reads."""
    return {(tensor, user) for tensor, user, role in claim.match.operands if role == "input_activation"}


def _reads(claim: Claim) -> Counter[Node]:
    """Number of nodes of a claim that read each of its activations."""
    return Counter(tensor for tensor, _ in _edges(claim))


def _may_be_left(claim: Claim) -> bool:
    """Whether a claim is cheap, and its output has quantization parameters of its own."""
    rounds = claim.row.sharing is Sharing.NONE and makes_integers(claim) and _reads_integers(claim)
    return rounds and not claim.row.profitable_alone and not is_asked_for_by_name(claim)
