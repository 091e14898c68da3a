"""Rows of a ledger: the decision for one operator, and the values that it consists of.

Importing this module does not import torch.
"""

from __future__ import annotations

import attrs

from torchquilt.ledger.lowering_status import LoweringStatus


@attrs.frozen
class Reason:
    """Reason for which a quantizer left a node.

    Args:
        quantizer: its name; empty where the reason is not that of a quantizer.
        code: a stable code, one of :data:`torchquilt.reasons.REASONS` or of a plugin's own.
        text: a sentence for people.
        rule: its rule that decides for the node, in words; empty where none does.
        asked: what that rule asks for: a config in words, or ``float``.
    """

    quantizer: str
    code: str
    text: str
    rule: str = ""
    asked: str = ""


@attrs.frozen
class Tensor:
    """One quantized tensor at a node.

    Args:
        edge: ``output``, or ``input <name of the producer>``.
        spec: the spec that holds there, in words.
        group: number of the group of tensors with one set of parameters.
    """

    edge: str
    spec: str
    group: int


@attrs.frozen
class Row:
    """Decision for one operator.

    Args:
        node: its name in the graph.
        op: its overload, ``aten.linear.default``.
        module: path of the innermost module that it comes from.
        quantizer: who took it, None where it stays in float.
        pattern: the pattern that it is a part of.
        rule: the rule that asked, in words.
        tensors: its quantized inputs and output.
        reasons: for a node in float, why each quantizer left it; never empty then.
        macs: multiply-adds for one call, for the example shapes; 0 where it has none.
        parameters: ``(name, bytes)`` of each stored float tensor that it reads.
        lowered: its lowering status; None where the model has not been lowered.
        written_as: the nodes that it consists of after a backend wrote it in another form, each with its
            overload; empty where it is as the user wrote it.
    """

    node: str
    op: str
    module: str
    quantizer: str | None
    pattern: str
    rule: str
    tensors: tuple[Tensor, ...]
    reasons: tuple[Reason, ...]
    macs: int
    parameters: tuple[tuple[str, int], ...]
    lowered: LoweringStatus | None = None
    written_as: tuple[tuple[str, str], ...] = ()

    @property
    def forms(self) -> tuple[tuple[str, str], ...]:
        """The nodes of the prepared graph that compute it, each with its overload."""
        return self.written_as or ((self.node, self.op),)

    @property
    def is_quantized(self) -> bool:
        """Whether some quantizer took it."""
        return self.quantizer is not None

    @property
    def code(self) -> str:
        """The code of the most telling reason, empty where it is quantized."""
        return self.reasons[0].code if self.reasons else ""


@attrs.frozen
class Boundary:
    """A tensor that is quantized in one way where it is made and in another where it is used.

    The user requantizes it: the convert puts a second quantize and dequantize pair before it.
    """

    producer: str
    user: str
    made_by: str
    made_as: str
    used_by: str
    used_as: str

    def __str__(self) -> str:
        made, used = f"{self.made_as} ({self.made_by})", f"{self.used_as} ({self.used_by})"
        return f"{self.producer} → {self.user}: {made} → {used}, by {self.user}"


@attrs.frozen
class Caution:
    """Something about a tensor that is quantized which is likely to cost accuracy.

    Args:
        edges: the edges and outputs where it is read and made, as in ``weight → linear``, joined by commas.
        code: a stable code, one of :data:`torchquilt.reasons.CAUTIONS`.
        text: a sentence for people.
    """

    edges: str
    code: str
    text: str

    def __str__(self) -> str:
        return f"{self.edges}: {self.code}: {self.text}"


@attrs.frozen
class Share:
    """Share of what is quantized in something.

    Args:
        name: what it is about: a backend, an operator or a module.
        nodes: operators, and how many of them are quantized.
        macs: multiply-adds, likewise.
        parameter_bytes: bytes of stored float tensors, likewise, each tensor counted once.
    """

    name: str
    nodes: tuple[int, int]
    macs: tuple[int, int]
    parameter_bytes: tuple[int, int]


@attrs.frozen
class Change:
    """A node whose decision differs between two ledgers."""

    node: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.node}: {self.before} → {self.after}"
