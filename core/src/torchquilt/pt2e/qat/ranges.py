"""Ranges to begin training with: those of a calibrated model with the same decisions."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from torch.fx import GraphModule

from torchquilt.errors import CalibrationError, ModelError
from torchquilt.observers import MinMaxObserver, make_observer
from torchquilt.observers.choice import OBSERVER_NAMES
from torchquilt.pt2e.annotate import Annotated
from torchquilt.pt2e.calibration.checkpoint import identity_of
from torchquilt.pt2e.calibration.merging import Calibration
from torchquilt.pt2e.model_record import keep_initial_state, set_stage, stage_in_words, stage_of
from torchquilt.pt2e.observer_points import ObservedPoint, observed_points
from torchquilt.pt2e.prepare import record_of, with_points


@attrs.frozen(eq=False)
class Range:
    """The range of an activation, and the parameters that calibration chose for it."""

    low: torch.Tensor
    high: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor


@attrs.frozen(eq=False)
class Ranges:
    """Ranges by the edges and nodes that they are of."""

    by_names: dict[tuple[str, ...], Range]

    def of(self, point: ObservedPoint) -> Range | None:
        """The range at a point; None where nothing is known."""
        return self.by_names.get(point.names)


def known_ranges(
    given: GraphModule | Calibration | None, prepared: GraphModule, annotate: Callable[[], Annotated]
) -> Ranges:
    """The ranges of ``ranges_from``.

    Args:
        given: a calibrated model or a calibration; None for no ranges.
        prepared: the model that is going to be trained, with the points of a prepared one.
        annotate: annotates a copy of the float model with the same decisions, for a calibration.

    Raises:
        ModelError: it is neither a calibrated model nor a calibration.
        CalibrationError: it was made with other decisions.
    """
    if given is None:
        return Ranges({})
    if isinstance(given, Calibration):
        given = _calibrated(given, annotate())
    if stage_of(given) != "prepared":
        raise ModelError(
            "Ranges come from a calibrated model.",
            expected="what prepare_pt2e returned, calibrated, or a torchquilt.Calibration",
            got=stage_in_words(given),
            remedy="calibrate(prepare_pt2e(exported, quantizer), batches)",
        )
    points, theirs = observed_points(prepared), observed_points(given)
    _check_same(points, theirs)
    return _ranges(theirs)


def _calibrated(given: Calibration, annotated: Annotated) -> GraphModule:
    """A calibrated model, made from a calibration.

    A calibration can be compared with the observers that it belongs to, and does not name them. So each
    kind of observer is tried.

    Raises:
        CalibrationError: it is of another model, other decisions, or observers that have a number.
    """
    prepared = with_points(annotated, MinMaxObserver)
    set_stage(prepared, "prepared", record_of(annotated))
    keep_initial_state(prepared)
    for choice in OBSERVER_NAMES:
        for point in observed_points(prepared).values():
            point.observer = make_observer(choice, point.spec)
        if identity_of(prepared)["observers"] == given.identity["observers"]:
            given.add_to(prepared)
            return prepared
    raise CalibrationError(
        "These observers are not known by a name.",
        expected=f"those of activation_observer={' | '.join(map(repr, OBSERVER_NAMES))}, with the same "
        "quantizer",
        got="other observers, or observers of other decisions",
        remedy="hand in the calibrated model itself: calibrate(prepare_pt2e(…), calibration)",
    )


def _check_same(points: dict[str, ObservedPoint], theirs: dict[str, ObservedPoint]) -> None:
    here, there = _described(points), _described(theirs)
    for name in {**here, **there}:
        if here.get(name) != there.get(name):
            raise CalibrationError(
                "These are the ranges of other decisions.",
                node=name,
                expected=here.get(name, "no observer there"),
                got=there.get(name, "no observer there"),
                remedy="prepare both models with the same quantizer",
            )


def _described(points: dict[str, ObservedPoint]) -> dict[str, str]:
    return {", ".join(point.names): str(point.spec) for point in points.values()}


def _ranges(points: dict[str, ObservedPoint]) -> Ranges:
    found = {}
    for point in points.values():
        if point.observer.has_data:
            qparams = point.qparams()
            found[point.names] = Range(*point.range(), qparams.scale, qparams.zero_point)
    return Ranges(found)
