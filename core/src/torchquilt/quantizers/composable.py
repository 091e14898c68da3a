"""Several quantizers as one: each annotates in turn, and the first to claim a node keeps it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import TYPE_CHECKING, Any

from torchquilt.errors import TorchquiltError
from torchquilt.quantizers.base import Quantizer, as_quantizer, inherits
from torchquilt.quantizers.deciding import Deciding, blamed
from torchquilt.spec.qspec import EdgeOrNode
from torchquilt.support.capabilities import Capabilities
from torchquilt.support.pattern import Reject

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


class ComposableQuantizer(Quantizer):
    """Quantizers in order of precedence. A composition is a quantizer, so compositions nest.

    Args:
        quantizers: :class:`torchquilt.Quantizer` instances, or any objects with ``annotate(model)``.
            An empty composition quantizes nothing.

    Raises:
        IntentError: one of them is not a quantizer.
    """

    def __init__(self, quantizers: Iterable[object]) -> None:
        self.quantizers: tuple[Quantizer, ...] = tuple(as_quantizer(quantizer) for quantizer in quantizers)

    def folds(self, batch_norm: Node, operator: Node) -> bool | None:
        """True if one quantizer asks for folding, False if one refuses it and none asks, otherwise None."""
        answers = {quantizer.folds(batch_norm, operator) for quantizer in self.quantizers}
        return next((answer for answer in (True, False) if answer in answers), None)

    def leaves(self) -> tuple[Quantizer, ...]:
        """The quantizers in order of precedence, with nested compositions written out."""
        return tuple(leaf for quantizer in self.quantizers for leaf in leaves_of(quantizer))

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Let each quantizer transform the model, in order.

        Raises:
            QuantizerError: a quantizer failed, or did not return a model that takes the same inputs.
        """
        return Deciding(self.leaves()).transform(model)

    def annotate(self, model: GraphModule) -> GraphModule:
        """Let each quantizer annotate, in order, and check that none changes another's annotations.

        Raises:
            QuantizerError: a quantizer failed, changed the graph, or annotated another model.
            CompositionError: a quantizer changed or removed what an earlier one had annotated.
        """
        return Deciding(self.leaves()).annotate(model)

    def validate(self, model: GraphModule) -> None:
        """Let each quantizer validate the annotated model. Its own exceptions are not wrapped."""
        for quantizer in self.quantizers:
            with blamed(quantizer):
                quantizer.validate(model)

    def rule_problems(self, model: GraphModule) -> tuple[TorchquiltError, ...]:
        """Errors for rules that cannot take effect, from all quantizers."""
        return tuple(found for quantizer in self.quantizers for found in quantizer.rule_problems(model))

    def outcome_problems(self, model: GraphModule) -> tuple[TorchquiltError, ...]:
        """Errors for rules without effect, from all quantizers."""
        return tuple(
            problem for quantizer in self.quantizers for problem in quantizer.outcome_problems(model)
        )

    def rejections(self, model: GraphModule) -> dict[Node, tuple[tuple[str, Reject], ...]]:
        """Reasons of each quantizer for the nodes that stay in float, the most telling first."""
        return Deciding(self.leaves()).rejections(model)

    def quantization_capabilities(self) -> Capabilities:
        """Capabilities of the composition, and their owners: the first quantizer that takes an operator."""
        return reduce(
            lambda left, right: left | right,
            (quantizer.quantization_capabilities() for quantizer in self.quantizers),
            Capabilities(),
        )

    def prepare_obs_or_fq_callback(
        self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[EdgeOrNode, Any]
    ) -> None:
        """Forward the call to each quantizer, in order."""
        for quantizer in self.quantizers:
            with blamed(quantizer, "prepare_obs_or_fq_callback"):
                quantizer.prepare_obs_or_fq_callback(model, edge_or_node_to_obs_or_fq)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ComposableQuantizer):
            return NotImplemented
        return self.quantizers == other.quantizers

    __hash__ = None  # type: ignore[assignment]  # the quantizers can be changed, so a hash would not hold

    def __repr__(self) -> str:
        return f"ComposableQuantizer([{', '.join(map(repr, self.quantizers))}])"


def leaves_of(quantizer: Quantizer) -> tuple[Quantizer, ...]:
    """The quantizers of a composition, or the quantizer itself.

    A derived class that overrides ``annotate`` or ``transform_for_annotation`` counts as one quantizer.
    """
    if not isinstance(quantizer, ComposableQuantizer):
        return (quantizer,)
    methods = (ComposableQuantizer.annotate, ComposableQuantizer.transform_for_annotation)
    return quantizer.leaves() if all(inherits(quantizer, each) for each in methods) else (quantizer,)
