"""Claims as they are annotated, kept in the graph until they are rewritten.

Importing this module does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from torchquilt.errors import QuantizerError
from torchquilt.quantizers.claim import Claim
from torchquilt.quantizers.matching import Rows
from torchquilt.spec.annotation import QuantizationAnnotation, annotate_node, annotation_of

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

    from torchquilt.quantizers.base import Quantizer

#: Key in ``node.meta`` of the last node of a claimed match: its claim, until the claims are rewritten.
_CLAIM_KEY = "torchquilt_claim"


@attrs.frozen(eq=False)
class AnnotatedClaim:
    """A claim, the quantizer that made it, and the annotations that the core wrote for it."""

    claim: Claim
    rows: Rows
    quantizer: str
    author: int
    annotations: tuple[tuple[Node, QuantizationAnnotation], ...]

    def is_of(self, node: Node) -> bool:
        """Whether the claim ends at this node itself, and not at a node that this one was copied from."""
        return self.claim.match.output is node

    @property
    def is_annotated(self) -> bool:
        """Whether the nodes still have these annotations; a quantizer may have replaced them since."""
        return all(annotation_of(node) is annotation for node, annotation in self.annotations)

    @property
    def has_its_inputs(self) -> bool:
        """Whether its operators still read the tensors that they read when they were matched."""
        return all(source in user._input_nodes for source, user, _ in self.claim.match.operands)

    def error(
        self,
        text: str,
        *,
        remedy: str,
        node: Node | None = None,
        expected: str | None = None,
        got: str | None,
    ) -> QuantizerError:
        """An error about the rewrite of the row; about the anchor, if no ``node`` is given."""
        return QuantizerError(
            f"The rewrite of the row {self.claim.row.pattern.name} {text}.",
            node=node or self.claim.match.anchor,
            quantizer=self.quantizer,
            expected=expected,
            got=got,
            remedy=remedy,
        )

    def is_alike(self, other: AnnotatedClaim | None) -> bool:
        """Whether another claim comes from the same quantizer, with the same config."""
        return other is not None and other.author == self.author and other.claim.config == self.claim.config


def annotated_claims(model: GraphModule) -> list[AnnotatedClaim]:
    """Take the claims out of ``node.meta``: those that still have their annotations, in graph order."""
    found = [(node, node.meta.pop(_CLAIM_KEY, None)) for node in model.graph.nodes]
    return [taken for node, taken in found if taken and taken.is_of(node) and taken.is_annotated]


def annotate_claim(claim: Claim, rows: Rows, quantizer: Quantizer) -> None:
    """Annotate a claim in the name of a quantizer, and keep it in ``node.meta`` until it is rewritten."""
    annotations = claim.annotations(quantizer.name, id(quantizer))
    for node, annotation in annotations:
        annotate_node(node, annotation)
    taken = AnnotatedClaim(claim, rows, quantizer.name, id(quantizer), annotations)
    claim.match.output.meta[_CLAIM_KEY] = taken
