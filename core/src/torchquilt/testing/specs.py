"""Resolution of annotations: the spec that holds for a tensor, and whether a row takes it."""

from __future__ import annotations

from torch.fx import Node

from torchquilt.spec.annotation import annotation_of
from torchquilt.spec.config import Role
from torchquilt.spec.dtypes import dtype_name
from torchquilt.spec.qspec import AnySpec, EdgeOrNode, OwnSpec, QuantizationSpec, SharedQuantizationSpec
from torchquilt.support.table import SupportRow


def own_spec(edge_or_node: EdgeOrNode) -> OwnSpec | None:
    """The spec of an edge or node, or of the one that it shares its parameters with; None for float."""
    seen: set[EdgeOrNode] = set()
    while edge_or_node not in seen:
        seen.add(edge_or_node)
        spec = _annotated_at(edge_or_node)
        if not isinstance(spec, SharedQuantizationSpec):
            return spec
        edge_or_node = spec.edge_or_node
    return None


def _annotated_at(edge_or_node: EdgeOrNode) -> AnySpec | None:
    node: Node = edge_or_node[1] if isinstance(edge_or_node, tuple) else edge_or_node
    annotation = annotation_of(node)
    if annotation is None:
        return None
    return (
        annotation.input_qspec_map.get(edge_or_node[0])
        if isinstance(edge_or_node, tuple)
        else annotation.output_qspec
    )


def takes(row: SupportRow, role: Role, spec: OwnSpec | None) -> bool:
    """Whether a row says that a role has this spec; None where the row leaves the role in float."""
    allowed = dict(row.specs).get(role)
    if allowed is None or spec is None:
        return allowed is None and spec is None
    if isinstance(spec, QuantizationSpec):
        # A config says the axis of a weight as nn.Linear has it; the row says where this operator has it.
        own_axis = role == "weight" and spec.ch_axis == row.channel_axis
        return any(
            all(own_axis and text.startswith("ch_axis") for text in option.differences(spec))
            for option in allowed
        )
    # Fixed and derived specs have parameters of their own; only their integers can be compared.
    return any(option.dtype == dtype_name(spec.dtype) for option in allowed)
