"""Claims: the matches that a quantizer takes, and the annotations that follow from them.

Importing this module does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from torchquilt.intent.rules import Rule
from torchquilt.spec.annotation import QuantizationAnnotation
from torchquilt.spec.arithmetic_limits import Arithmetic
from torchquilt.spec.config import QuantizationConfig, Role
from torchquilt.spec.qspec import AnySpec, Granularity, QuantizationSpec, SharedQuantizationSpec
from torchquilt.support.pattern import Match
from torchquilt.support.table import Sharing, SupportRow

if TYPE_CHECKING:
    from torch.fx import Node


@attrs.frozen
class Claim:
    """A match that a quantizer takes, with its row of the table, and the rule and config that ask for it.

    Args:
        match: the match.
        row: the row that takes it.
        rule: the rule that asks for it.
        config: the config that the rule asks for.
        returns_float: whether its output stays in float, see :mod:`torchquilt.quantizers.float_outputs`.
    """

    match: Match
    row: SupportRow
    rule: Rule
    config: QuantizationConfig
    returns_float: bool = False

    def annotations(self, quantizer: str, author: int) -> tuple[tuple[Node, QuantizationAnnotation], ...]:
        """The annotation of each node of the match.

        Args:
            quantizer: name of the quantizer that claims the match.
            author: its ``id``.
        """
        last = self.match.output
        inputs = self._input_specs()
        return tuple(
            (
                node,
                QuantizationAnnotation(
                    inputs.get(node, {}),
                    self._output_spec() if node is last else None,
                    quantizer=quantizer,
                    pattern=self.row.pattern.name,
                    rule=str(self.rule),
                    arithmetic=self._arithmetic() if node is last else None,
                    author=author,
                ),
            )
            for node in self.match.nodes
        )

    def _arithmetic(self) -> Arithmetic | None:
        """The limits of the row, and the tensors of the match that they limit."""
        if self.row.limits is None:
            return None
        edges: dict[str, list[tuple[Node, Node]]] = {}
        for producer, user, role in self.match.operands:
            edges.setdefault(role, []).append((producer, user))
        return Arithmetic(
            self.row.limits,
            tuple(edges.get("input_activation", ())),
            next(iter(edges.get("weight", ())), None),
            next(iter(edges.get("bias", ())), None),
        )

    def _input_specs(self) -> dict[Node, dict[Node, AnySpec | None]]:
        """The spec of each input with a role: node of the match → producer → spec."""
        found: dict[Node, dict[Node, AnySpec | None]] = {}
        for producer, user, role in self.match.operands:
            spec: AnySpec | None = self._spec(role)
            if self.row.sharing is Sharing.FOLLOWS_INPUT:
                spec = SharedQuantizationSpec(producer)
            elif self.row.sharing is Sharing.ALL and producer is not self._first_edge[0]:
                spec = SharedQuantizationSpec(self._first_edge)
            if spec is not None:
                found.setdefault(user, {}).setdefault(producer, spec)
        return found

    def _output_spec(self) -> AnySpec | None:
        if self.returns_float:
            return None
        if self.row.sharing is Sharing.NONE:
            return self.config.output_activation
        first = self._first_edge
        return SharedQuantizationSpec(first[0] if self.row.sharing is Sharing.FOLLOWS_INPUT else first)

    @property
    def _first_edge(self) -> tuple[Node, Node]:
        """Edge of the first input activation. Others share its parameters."""
        edges = ((source, user) for source, user, role in self.match.operands if role == "input_activation")
        return next(edges)

    def _spec(self, role: Role) -> QuantizationSpec | None:
        """The config's spec of a role, with the weight axis and the tokens that the row means."""
        spec = self.config.spec(role)
        if role == "weight" and spec is not None and spec.granularity is Granularity.PER_AXIS:
            return attrs.evolve(spec, ch_axis=self.row.channel_axis)
        if self.row.one_range_for_input and spec is not None and spec.granularity is Granularity.PER_TOKEN:
            return attrs.evolve(spec, granularity=Granularity.PER_TENSOR)
        return spec
