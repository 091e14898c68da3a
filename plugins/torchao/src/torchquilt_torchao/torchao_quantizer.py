"""Quantizers of torchquilt as quantizers of torchao's protocol."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import quantizer as theirs
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

import torchquilt as tq
from torchquilt.backend import QuantizationAnnotation, annotate_copy, as_quantizer
from torchquilt.errors import CompositionError, ModelError
from torchquilt_torchao.outgoing import torchao_spec


def as_torchao(quantizer: Any, *, strict: bool = True) -> TorchaoQuantizer:
    """Make a quantizer of torchao's protocol of one of torchquilt.

    It works in torchao's ``prepare_pt2e`` and wherever one of torchao is expected. Quantize and dequantize,
    and their parameters, are those of torchquilt's own flow with min-max observers.

    Args:
        quantizer: a quantizer or composition of torchquilt, or ``"backend:preset"``.
        strict: raise for rules that cannot take effect; with False they are warnings.

    Raises:
        IntentError: it is none.
    """
    return TorchaoQuantizer(as_quantizer(quantizer), strict=strict)


class TorchaoQuantizer(theirs.Quantizer):  # type: ignore[misc]
    """A quantizer of torchao that lets one of torchquilt decide.

    Rewriting and deciding are one step in torchquilt, so all is decided in :meth:`transform_for_annotation`;
    :meth:`annotate` writes it down in torchao's form.

    Args:
        quantizer: the one that decides.
        strict: as for :func:`as_torchao`.
    """

    def __init__(self, quantizer: tq.Quantizer, *, strict: bool = True) -> None:
        self.quantizer = quantizer
        self.strict = strict
        # The key in ``node.meta`` of what is decided, until it is this quantizer's turn to annotate.
        self._key = f"torchquilt_torchao_{id(self)}"

    def __repr__(self) -> str:
        return f"as_torchao({self.quantizer!r})"

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Decide about a copy of the model, which is what torchao goes on with.

        Raises:
            ModelError: something within control flow would be quantized, where torchao does not prepare it.
            IntentError, AnnotationError, …: as :func:`torchquilt.prepare_pt2e`.
        """
        annotated = annotate_copy(model, self.quantizer, strict=self.strict)
        for region, groups in annotated.groups:
            if region.path and groups:
                raise ModelError(
                    "torchao does not prepare the subgraphs of control flow as torchquilt does.",
                    node=region.path,
                    quantizer=self.quantizer.name,
                    expected="a model whose quantized operators are all outside of control flow",
                    got=f"{len(groups)} tensors that would be quantized in {region.path}",
                    remedy="use torchquilt.prepare_pt2e for this model",
                )
        specs = _specs_of_groups(annotated.groups[0][1])
        for node in annotated.model.graph.nodes:
            ours = node.meta.pop(Q_ANNOTATION_KEY, None)
            if ours is not None:
                node.meta[self._key] = _annotation(node, ours, specs)
        return annotated.model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Write what was decided.

        Raises:
            CompositionError: another quantizer has annotated one of the nodes since.
        """
        for node in model.graph.nodes:
            decided = node.meta.pop(self._key, None)
            if decided is None:
                continue
            if Q_ANNOTATION_KEY in node.meta:
                raise CompositionError(
                    f"{node.name} is annotated by a quantizer that comes before {self.quantizer.name}.",
                    node=node,
                    quantizer=self.quantizer.name,
                    expected=f"{node.name} without an annotation, as when {self.quantizer.name} decided",
                    got=node.meta[Q_ANNOTATION_KEY],
                    remedy="put as_torchao(...) first in torchao's ComposableQuantizer, or compose with "
                    "torchquilt.ComposableQuantizer, where each decides after the ones before it",
                )
            node.meta[Q_ANNOTATION_KEY] = decided
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing is left to check: the decisions were checked when they were made."""


def _specs_of_groups(groups: Any) -> dict[Any, Any]:
    """Edge or node → its spec of torchao: that of the group at its first member, which the others share."""
    specs: dict[Any, Any] = {}
    for group in groups:
        first, *others = group.members
        specs[first] = torchao_spec(group.spec)
        specs.update(dict.fromkeys(others, theirs.SharedQuantizationSpec(first)))
    return specs


def _annotation(node: Node, ours: QuantizationAnnotation, specs: dict[Any, Any]) -> Any:
    """The annotation of torchao for a node. What is derived from other inputs comes behind them."""
    inputs = {source: specs[source, node] for source in ours.input_qspec_map if (source, node) in specs}
    is_derived = theirs.DerivedQuantizationSpec
    ordered = sorted(inputs.items(), key=lambda item: isinstance(item[1], is_derived))
    return theirs.QuantizationAnnotation(dict(ordered), specs.get(node), False, _annotated=True)
