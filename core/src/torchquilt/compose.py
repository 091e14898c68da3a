"""Several quantizers as one: each annotates in turn, and who comes first keeps a node."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import TYPE_CHECKING, Any, cast

import attrs

from torchquilt.annotation import ANNOTATION_KEY, QuantizationAnnotation, annotation_of, check_annotation
from torchquilt.capability import Capabilities
from torchquilt.errors import CompositionError, ModelError, TorchquiltError
from torchquilt.pattern import Reject
from torchquilt.quantizers import Quantizer, as_quantizer
from torchquilt.spec import EdgeOrNode

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


class ComposableQuantizer(Quantizer):
    """Quantizers in order of precedence. A composition is a quantizer, so compositions nest.

    Args:
        quantizers: :class:`torchquilt.Quantizer` instances, or any objects with ``annotate(model)``.
            May be empty (nothing is quantized).

    Raises:
        IntentError: one of them is not a quantizer.
    """

    def __init__(self, quantizers: Iterable[object]) -> None:
        self.quantizers: tuple[Quantizer, ...] = tuple(as_quantizer(quantizer) for quantizer in quantizers)

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Let each quantizer transform the model, in order."""
        for quantizer in self.quantizers:
            transformed: object = quantizer.transform_for_annotation(model)
            if not hasattr(transformed, "graph"):
                raise ModelError(
                    "The quantizer did not return the model that it transformed.",
                    quantizer=quantizer.name,
                    expected="transform_for_annotation returns a GraphModule",
                    got=f"{type(transformed).__module__}.{type(transformed).__qualname__}",
                    remedy="end transform_for_annotation with `return model`",
                )
            model = cast("GraphModule", transformed)
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Let each quantizer annotate, in order, and see to it that none touches another's decision.

        Raises:
            CompositionError: a quantizer changed or removed what an earlier one had annotated.
        """
        decided: dict[Node, tuple[QuantizationAnnotation, str]] = {}
        for node in model.graph.nodes:
            annotation = annotation_of(node)
            if annotation is not None:
                decided[node] = (annotation, annotation.quantizer or "an earlier quantizer")
        for quantizer in self.quantizers:
            returned: object = quantizer.annotate(model)
            if returned is not None and returned is not model:
                raise ModelError(
                    "The quantizer annotated another model than the one that it was given.",
                    quantizer=quantizer.name,
                    expected="annotations on the nodes of the model that annotate receives",
                    got="another model returned from annotate",
                    remedy="annotate in place; rewriting belongs into transform_for_annotation",
                )
            _keep_what_was_decided(model, quantizer.name, decided)
        self._annotate_rest(model, decided)
        return model

    def annotate_rest(self, model: GraphModule) -> None:
        """Let each quantizer annotate what it can by now, in order."""
        for quantizer in self.quantizers:
            quantizer.annotate_rest(model)

    def _annotate_rest(
        self, model: GraphModule, decided: dict[Node, tuple[QuantizationAnnotation, str]]
    ) -> None:
        """Go on until nothing is added: what one backend passes on, another may pass on further."""
        before = -1
        while len(decided) > before and len(self.quantizers) > 1:
            before = len(decided)
            for quantizer in self.quantizers:
                quantizer.annotate_rest(model)
                _keep_what_was_decided(model, quantizer.name, decided)

    def validate(self, model: GraphModule) -> None:
        """Let each quantizer validate the model that all of them annotated."""
        for quantizer in self.quantizers:
            quantizer.validate(model)

    def rule_problems(self, model: GraphModule) -> tuple[TorchquiltError, ...]:
        """The problems of all quantizers."""
        return tuple(found for quantizer in self.quantizers for found in quantizer.rule_problems(model))

    def outcome_problems(self, model: GraphModule) -> tuple[TorchquiltError, ...]:
        """The problems of all quantizers."""
        return tuple(
            problem for quantizer in self.quantizers for problem in quantizer.outcome_problems(model)
        )

    def rejections(self, model: GraphModule) -> dict[Node, tuple[tuple[str, Reject], ...]]:
        """What each quantizer says of the nodes that nobody took, the most telling first."""
        found: dict[Node, tuple[tuple[str, Reject], ...]] = {}
        for quantizer in self.quantizers:
            for node, rejected in quantizer.rejections(model).items():
                found[node] = (*found.get(node, ()), *rejected)
        return {node: tuple(sorted(rejected, key=_by_weight)) for node, rejected in found.items()}

    def quantization_capabilities(self) -> Capabilities:
        """What the quantizers would quantize together, and which of them: the first that takes it."""
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
            quantizer.prepare_obs_or_fq_callback(model, edge_or_node_to_obs_or_fq)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ComposableQuantizer):
            return NotImplemented
        return self.quantizers == other.quantizers

    __hash__ = None  # type: ignore[assignment]  # the quantizers can be changed, so a hash would not hold

    def __repr__(self) -> str:
        return f"ComposableQuantizer([{', '.join(map(repr, self.quantizers))}])"


def _by_weight(rejected: tuple[str, Reject]) -> int:
    return -rejected[1].weight


def _keep_what_was_decided(
    model: GraphModule, quantizer: str, decided: dict[Node, tuple[QuantizationAnnotation, str]]
) -> None:
    """Compare with what was decided before, and take up what is new, in the name of who wrote it."""
    for node in model.graph.nodes:
        annotation = annotation_of(node)
        if node in decided:
            earlier, owner = decided[node]
            if annotation is not earlier:
                deed = "removed" if annotation is None else "changed"
                raise CompositionError(
                    f"{quantizer} {deed} an annotation of {owner}.",
                    node=node,
                    quantizer=f"{owner} (first), {quantizer} (now)",
                    expected=f"the annotation of {owner}",
                    got=annotation,
                    remedy=f"compose {quantizer} before {owner}, or let it skip annotated nodes",
                )
        elif annotation is not None:
            if not annotation.quantizer:
                annotation = attrs.evolve(annotation, quantizer=quantizer)
                node.meta[ANNOTATION_KEY] = annotation
            check_annotation(node, annotation)
            decided[node] = (annotation, annotation.quantizer)
