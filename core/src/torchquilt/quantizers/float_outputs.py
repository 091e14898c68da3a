"""Float outputs: of kernels that write floats as well as integers, where nothing reads the integers.

A linear in front of a GELU, or of a residual sum and a LayerNorm, is read in float. To quantize what it
returns would round each value once more, and convert it back. If its row says that its kernel may return
floats, such an output has no quantization parameters, and data-movement operators behind it move floats.

An output stays quantized where an operator reads its integers, directly or behind data-movement operators;
where it is an output of the program, since a caller may take integers; and where a rule asks for one of these
data-movement operators by name. The cost is linear in the edges of the graph. Importing this module does not
import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import attrs

from torchquilt.quantizers.claim import Claim
from torchquilt.quantizers.profitability import (
    Tensor,
    is_asked_for_by_name,
    makes_integers,
    tensors_around,
)
from torchquilt.support.pattern import Reject
from torchquilt.support.table import Sharing

if TYPE_CHECKING:
    from torch.fx import Node


@attrs.frozen
class FloatOutputs:
    """The claims whose outputs stay in float.

    Args:
        returned: outputs of the claims that return floats.
        left: anchor of each claim that shares the parameters of such an output → why it stays in float.
    """

    returned: frozenset[Node]
    left: Mapping[Node, Reject]


def float_outputs(claims: Iterable[Claim]) -> FloatOutputs:
    """Find the outputs that stay in float.

    Args:
        claims: those that are profitable, in the order of the graph.
    """
    claims = tuple(claims)
    candidates = [claim for claim in claims if claim.row.may_return_float and makes_integers(claim)]
    tensors = tensors_around(claims) if candidates else {}
    returned: set[Node] = set()
    left: dict[Node, Reject] = {}
    for claim in candidates:
        group = _with_followers(claim, tensors)
        if not _is_read_in_float(group, tensors):
            continue
        returned.add(claim.match.output)
        for follower in group[1:]:
            name = follower.match.anchor.name
            text = f"{claim.match.output.name} returns floats, and {name} shares its parameters"
            left[follower.match.anchor] = Reject("no_quantized_neighbour", follower.match.nodes, text)
    return FloatOutputs(frozenset(returned), left)


def _with_followers(claim: Claim, tensors: Mapping[Node, Tensor]) -> list[Claim]:
    """A claim and those that share its output's parameters, directly or through each other."""
    group = [claim]
    for each in group:  # grows while it is walked
        readers = tensors[each.match.output].readers.values()
        group += (reader for reader in readers if reader.row.sharing is Sharing.FOLLOWS_INPUT)
    return group


def _is_read_in_float(group: list[Claim], tensors: Mapping[Node, Tensor]) -> bool:
    """Whether operators read what a claim and its followers return, and all of them in float."""
    if any(map(is_asked_for_by_name, group[1:])):
        return False
    outputs = [each.match.output for each in group]
    if any(user.op == "output" for node in outputs for user in node.users):
        return False
    # Each follower reads one of these tensors once.
    as_integers = sum(tensors[node].as_integers for node in outputs)
    return as_integers == len(group) - 1 and any(tensors[node].in_float for node in outputs)
