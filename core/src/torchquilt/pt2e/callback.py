"""Hook ``prepare_obs_or_fq_callback``: what it may do to observer points, and what is refused.

A quantizer may replace how parameters are found: the observer of a point, or the whole point by one that is
observed or has known parameters. Which places are quantized, as what, and which of them share parameters is
decided by then, and the ledger says it; so none of this may change here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torchquilt.errors import QuantizerError
from torchquilt.observers import Observer
from torchquilt.pt2e.annotate import Annotated
from torchquilt.pt2e.observer_points import ConstantPoint, FixedPoint, ObservedPoint, QuantizationPoint
from torchquilt.pt2e.sharing_groups import Group, place_name
from torchquilt.quantizers.composable import ComposableQuantizer
from torchquilt.spec.qspec import EdgeOrNode

_NUMBERS = ("dtype", "quant_min", "quant_max", "granularity", "ch_axis", "group_size")


def ask_for_points(annotated: Annotated, points: dict[EdgeOrNode, Any]) -> dict[EdgeOrNode, Any]:
    """Let the quantizers see and replace the points.

    Args:
        annotated: the model and its groups.
        points: place → the point that was made for it; one point for each group.

    Returns:
        Place → the point that will stand there.

    Raises:
        QuantizerError: a quantizer failed, or did to the points what it may not.
    """
    asked = dict(points)
    quantizer = annotated.quantizer
    # A composition of one: it is the composition that says whose an error is.
    ComposableQuantizer([quantizer]).prepare_obs_or_fq_callback(annotated.model, asked)
    groups = [group for _, found in annotated.groups for group in found]
    try:
        _check_places(points, asked)
        for place, before in points.items():
            _check_point(place, before, asked[place])
        _check_sharing(groups, asked)
    except QuantizerError as error:
        error.quantizer = quantizer.name
        raise
    return asked


def _check_places(points: dict[EdgeOrNode, Any], asked: dict[EdgeOrNode, Any]) -> None:
    for deed, strange in (("removed", [*points.keys() - asked]), ("added", [*asked.keys() - points])):
        if strange:
            raise _refused(
                f"{deed} a place",
                strange[0],
                expected="the places that are annotated, and no others",
                got=f"{deed} {', '.join(map(place_name, strange))}",
            )


def _check_sharing(groups: Iterable[Group], asked: dict[EdgeOrNode, Any]) -> None:
    """One point for each group, and one group for each point."""
    owner: dict[int, Group] = {}
    for group in groups:
        held = {id(asked[place]) for place in group.places}
        if len(held) > 1 or any(owner.setdefault(point, group) is not group for point in held):
            raise _refused(
                "changed which places share parameters",
                group.places[0],
                expected=f"one point for {', '.join(map(place_name, group.places))}, and for no others",
                got=f"{len(held)} points" if len(held) > 1 else "a point that stands at other places, too",
            )


def _check_point(place: EdgeOrNode, before: QuantizationPoint[Any], after: object) -> None:
    if not isinstance(after, QuantizationPoint):
        raise _refused(
            "put in something that is not a point",
            place,
            expected="a torchquilt.pt2e.observer_points.QuantizationPoint",
            got=f"{type(after).__module__}.{type(after).__qualname__}",
        )
    if isinstance(after, ObservedPoint) and not isinstance(after.observer, Observer):
        raise _refused(
            "put in something that is not an observer",
            place,
            expected="a torchquilt.observers.Observer",
            got=f"{type(after.observer).__module__}.{type(after.observer).__qualname__}",
        )
    is_replaced = after is not before
    can_replace = isinstance(before, (ObservedPoint, ConstantPoint)) and isinstance(
        after, (ObservedPoint, FixedPoint)
    )
    if is_replaced and not can_replace:
        raise _refused(
            "replaced a point by one that cannot stand there",
            place,
            expected="an ObservedPoint or a FixedPoint in the place of one that is observed or constant",
            got=f"{type(after).__name__} in the place of {type(before).__name__}",
        )
    observed = (after.observer.spec,) if isinstance(after, ObservedPoint) else ()
    for spec in (after.spec, *observed):
        differing = [name for name in _NUMBERS if getattr(before.spec, name) != getattr(spec, name)]
        if differing:
            raise _refused(
                f"changed the {' and the '.join(differing)} of what was annotated",
                place,
                expected=str(before.spec),
                got=str(spec),
            )


def _refused(deed: str, place: EdgeOrNode, expected: str, got: str) -> QuantizerError:
    return QuantizerError(
        f"prepare_obs_or_fq_callback {deed}.",
        node=place_name(place),
        expected=expected,
        got=got,
        remedy="replace the observer of a point (point.observer), or a point by an ObservedPoint; what is "
        "quantized and what shares its parameters is said by annotations",
    )
