"""Hook ``prepare_obs_or_fq_callback``: what it may do to observer points, and what is refused.

A quantizer may replace how parameters are found: the observer of a point, or the whole point by one that is
observed or has known parameters. Which edges and nodes are quantized, as what, and which of them share
parameters is decided by then, and the ledger says it; so none of this may change here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torchquilt.errors import QuantizerError
from torchquilt.observers import Observer
from torchquilt.pt2e.annotate import Annotated
from torchquilt.pt2e.observer_points import ConstantPoint, FixedPoint, ObservedPoint, QuantizationPoint
from torchquilt.pt2e.sharing_groups import Group, edge_name
from torchquilt.quantizers.composable import ComposableQuantizer
from torchquilt.spec.qspec import EdgeOrNode

_INTEGERS = ("dtype", "quant_min", "quant_max", "granularity", "ch_axis", "group_size")


def ask_for_points(annotated: Annotated, points: dict[EdgeOrNode, Any]) -> dict[EdgeOrNode, Any]:
    """Let the quantizers see and replace the points.

    Args:
        annotated: the model and its groups.
        points: edge or node → the point that was made for it; one point for each group.

    Returns:
        Edge or node → the point that will stand there.

    Raises:
        QuantizerError: a quantizer failed, or did to the points what it may not.
    """
    asked = dict(points)
    quantizer = annotated.quantizer
    # A composition of one: it is the composition that says whose an error is.
    ComposableQuantizer([quantizer]).prepare_obs_or_fq_callback(annotated.model, asked)
    groups = [group for _, found in annotated.groups for group in found]
    try:
        _check_members(points, asked)
        for edge_or_node, before in points.items():
            _check_point(edge_or_node, before, asked[edge_or_node])
        _check_sharing(groups, asked)
    except QuantizerError as error:
        error.quantizer = quantizer.name
        raise
    return asked


def _check_members(points: dict[EdgeOrNode, Any], asked: dict[EdgeOrNode, Any]) -> None:
    for deed, strange in (("removed", [*points.keys() - asked]), ("added", [*asked.keys() - points])):
        if strange:
            raise _refused(
                f"{deed} an edge or node",
                strange[0],
                expected="the edges and nodes that are annotated, and no others",
                got=f"{deed} {', '.join(map(edge_name, strange))}",
            )


def _check_sharing(groups: Iterable[Group], asked: dict[EdgeOrNode, Any]) -> None:
    """One point for each group, and one group for each point."""
    owner: dict[int, Group] = {}
    for group in groups:
        held = {id(asked[edge_or_node]) for edge_or_node in group.members}
        if len(held) > 1 or any(owner.setdefault(point, group) is not group for point in held):
            raise _refused(
                "changed which edges and nodes share parameters",
                group.members[0],
                expected=f"an observer point of {', '.join(map(edge_name, group.members))}, and of no others",
                got=f"{len(held)} observer points"
                if len(held) > 1
                else "an observer point of other edges and nodes, too",
            )


def _check_point(edge_or_node: EdgeOrNode, before: QuantizationPoint[Any], after: object) -> None:
    if not isinstance(after, QuantizationPoint):
        raise _refused(
            "put in something that is not an observer point",
            edge_or_node,
            expected="a torchquilt.pt2e.observer_points.QuantizationPoint",
            got=f"{type(after).__module__}.{type(after).__qualname__}",
        )
    if isinstance(after, ObservedPoint) and not isinstance(after.observer, Observer):
        raise _refused(
            "put in something that is not an observer",
            edge_or_node,
            expected="a torchquilt.observers.Observer",
            got=f"{type(after.observer).__module__}.{type(after.observer).__qualname__}",
        )
    is_replaced = after is not before
    can_replace = isinstance(before, (ObservedPoint, ConstantPoint)) and isinstance(
        after, (ObservedPoint, FixedPoint)
    )
    if is_replaced and not can_replace:
        raise _refused(
            "replaced an observer point by one that cannot stand there",
            edge_or_node,
            expected="an ObservedPoint or a FixedPoint instead of one that is observed or constant",
            got=f"{type(after).__name__} instead of {type(before).__name__}",
        )
    observed = (after.observer.spec,) if isinstance(after, ObservedPoint) else ()
    for spec in (after.spec, *observed):
        differing = [name for name in _INTEGERS if getattr(before.spec, name) != getattr(spec, name)]
        if differing:
            raise _refused(
                f"changed the {' and the '.join(differing)} of what was annotated",
                edge_or_node,
                expected=str(before.spec),
                got=str(spec),
            )


def _refused(deed: str, edge_or_node: EdgeOrNode, expected: str, got: str) -> QuantizerError:
    return QuantizerError(
        f"prepare_obs_or_fq_callback {deed}.",
        node=edge_name(edge_or_node),
        expected=expected,
        got=got,
        remedy="replace the observer of a point (point.observer), or an observer point by an ObservedPoint; "
        "annotations say what is quantized and what shares parameters",
    )
