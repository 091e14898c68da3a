"""sensitivity: the cost of quantizing each group of operators, from one calibration."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from torch.export import ExportedProgram
from torch.fx import GraphModule

from torchquilt._internal.terminal import is_terminal, progress_if
from torchquilt.accuracy.estimates import Noise, estimated_noise
from torchquilt.accuracy.evaluations import Evaluations, check_state, identity_of_metrics
from torchquilt.accuracy.metric import Evaluate, Metric
from torchquilt.accuracy.running import checked_batches, float_copy
from torchquilt.accuracy.sensitivity_values import GroupSensitivity, Sensitivity
from torchquilt.accuracy.units import FLOAT, Choice, unit_name
from torchquilt.accuracy.variants import Decided, Variants
from torchquilt.observers import ObserverFactory
from torchquilt.pt2e.calibration.merging import Calibration

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: Estimates are taken from so many batches: more do not change the order of the groups.
ESTIMATED_BATCHES = 4


def sensitivity(
    exported: ExportedProgram | GraphModule,
    quantizer: object,
    calibration: Iterable[object] | Calibration,
    evaluate: Evaluate | None = None,
    *,
    minimize: bool = False,
    data: Iterable[object] | None = None,
    activation_observer: str | ObserverFactory = "histogram",
    limit: int = ESTIMATED_BATCHES,
    state: str | os.PathLike[str] | None = None,
    group: ProcessGroup | None = None,
    progress: bool = True,
) -> Sensitivity:
    """Say what quantizing each group of operators costs. A group is a module of the model.

    The noise that each group adds to the outputs is estimated from a forward and a backward pass a batch.
    With ``evaluate`` the metric is measured as well, with each group quantized alone and with each left in
    float.
    Data is observed once, whatever is left in float, and the model is not exported again.

    Args:
        exported: the float model; it stays as it was.
        quantizer: as for :func:`torchquilt.prepare_pt2e`.
        calibration: batches as for :func:`torchquilt.calibrate`, or a :class:`torchquilt.Calibration`.
        evaluate: judges a model, which is called like the float one. Larger is better.
        minimize: smaller is better.
        data: batches to estimate with, where the calibration has none of its own; by default its own.
        activation_observer: as for :func:`torchquilt.prepare_pt2e`.
        limit: estimate from at most so many batches.
        state: a file for the metrics. Where it exists, they are taken from it, and the others are added.
        group: a process group (of ``torch.distributed``), every rank of which calls this with the same
            arguments. Each evaluates its part, and all return the same.
        progress: show how far it is, and beforehand how long it takes, on standard error where that is a
            terminal.

    Raises:
        ModelError, AnnotationError, SharingError, QuantizerError: as :func:`torchquilt.prepare_pt2e`.
        CalibrationError, AccuracyError: data does not go through the model, or the metric failed.
    """
    check_state(state)
    variants = Variants(exported, quantizer, calibration, activation_observer)
    given = variants.decided({})
    units = tuple(given.outcome())
    names = {unit: _rows(given, unit) for unit in units}
    prepared = variants.prepared(given, progress=progress)
    batches = variants.batches if data is None else checked_batches(data, variants.model)
    noise = _noise(prepared, given, batches, limit, progress=progress)
    found = {
        unit: GroupSensitivity(
            unit_name(unit),
            tuple(row.node for row in rows),
            tuple(dict.fromkeys(row.quantizer for row in rows if row.quantizer)),
            sum(row.macs for row in rows),
            noise.of_units.get(unit, 0.0),
        )
        for unit, rows in names.items()
    }
    if evaluate is None:
        return Sensitivity(tuple(sorted(found.values(), key=lambda one: -one.noise)), noise.is_weighted)
    metric = Metric(evaluate, minimize)
    evaluations = Evaluations(state, identity_of_metrics(prepared, metric), group)
    values = _measured(variants, units, metric, evaluations, progress=progress)
    return _with_metrics(found, values, is_weighted=noise.is_weighted, minimize=minimize)


def _rows(decided: Decided, unit: str) -> list[Any]:
    return [
        row for row in decided.ledger.quantized if decided.units.get(row.forms[-1][0], row.module) == unit
    ]


def _noise(
    prepared: GraphModule,
    decided: Decided,
    batches: Iterable[object] | None,
    limit: int,
    *,
    progress: bool,
) -> Noise:
    if batches is None:
        return Noise({}, is_weighted=False)
    return estimated_noise(prepared, decided, batches, limit, progress=progress)


def variant_metric(
    variants: Variants, metric: Metric, choices: Mapping[str, Choice], what: str
) -> Callable[[], float]:
    """A function that makes a variant and judges it."""

    def compute() -> float:
        return metric(variants.converted(variants.prepared(variants.decided(choices))), what)

    return compute


def _measured(
    variants: Variants,
    units: tuple[str, ...],
    metric: Metric,
    evaluations: Evaluations,
    *,
    progress: bool,
) -> dict[str, float]:
    """Key → metric: of the float model, of the quantized one, and of each group alone and left out."""
    wanted: dict[str, Callable[[], float]] = {
        "float": lambda: metric(float_copy(variants.model), "the float model"),
        "quantized": variant_metric(variants, metric, {}, "the quantized model"),
    }
    for unit in units:
        others = {other: FLOAT for other in units if other != unit}
        name = unit_name(unit)
        wanted[f"alone {name}"] = variant_metric(variants, metric, others, f"the model with {name} alone")
        wanted[f"without {name}"] = variant_metric(
            variants, metric, {unit: FLOAT}, f"the model without {name}"
        )
    return evaluate_all(wanted, evaluations, "evaluating", progress=progress)


def evaluate_all(
    wanted: Mapping[str, Callable[[], float]], evaluations: Evaluations, verb: str, *, progress: bool
) -> dict[str, float]:
    """Evaluate in portions, and say how far that is; how long it takes after the first ones."""
    keys, started = list(wanted), time.monotonic()
    found: dict[str, float] = {}
    portion = evaluations.ranks
    known = sum(key in evaluations.values for key in keys)
    with progress_if(progress, verb, len(keys), "models") as show:
        for first in range(0, len(keys), portion):
            part = {key: wanted[key] for key in keys[first : first + portion]}
            found |= dict(zip(part, evaluations.get(part), strict=True))
            show(len(found))
            if progress and len(found) == 2 * portion and not known:
                _announce(time.monotonic() - started, len(found), len(keys))
    return found


def _announce(seconds: float, done: int, total: int) -> None:
    if is_terminal(sys.stderr):
        rest = seconds / done * (total - done)
        sys.stderr.write(f"{total - done} more models to evaluate: about {rest:.0f} s\n")


def _with_metrics(
    found: Mapping[str, GroupSensitivity], values: Mapping[str, float], *, is_weighted: bool, minimize: bool
) -> Sensitivity:
    groups = [
        attrs.evolve(one, alone=values[f"alone {one.name}"], left_out=values[f"without {one.name}"])
        for one in found.values()
    ]
    sign = 1 if minimize else -1

    def rank(one: GroupSensitivity) -> tuple[float, float]:
        assert one.left_out is not None
        return sign * one.left_out, -one.noise

    return Sensitivity(
        tuple(sorted(groups, key=rank)), is_weighted, values["float"], values["quantized"], minimize
    )
