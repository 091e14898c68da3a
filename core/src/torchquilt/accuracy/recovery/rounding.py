"""Rounding of weights by the error of what their layers return, instead of to the nearest integers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import torch
from torch.fx import GraphModule, Node

from torchquilt._internal.torch_defaults import default_global_state
from torchquilt.accuracy.recovery.matrix_layouts import (
    Layout,
    Moments,
    Reading,
    has_own_parameters,
    output_errors,
    reading_of,
)
from torchquilt.accuracy.recovery.second_order import Levels, adaround, gptq
from torchquilt.accuracy.recovery.settling import settle
from torchquilt.accuracy.recovery.simulation import Replacing, finished, look_at, simulated_copy
from torchquilt.accuracy.recovery.steps import Gain, RecoveryStep, note_step
from torchquilt.accuracy.running import Runnable, checked_batches, numbered, run_on_each
from torchquilt.errors import AccuracyError, ModelError
from torchquilt.graph.code_generation import generate_code
from torchquilt.graph.constant_folding import constant_value
from torchquilt.graph.edits import copy_model
from torchquilt.graph.node_values import constant_nodes
from torchquilt.graph.subgraphs import Region, regions
from torchquilt.observers import MinMaxObserver, QParams, qparams_of_range
from torchquilt.observers.qparams import as_rows
from torchquilt.pt2e.choices import ChosenConstant, back_from_rows
from torchquilt.pt2e.model_record import stage_in_words, stage_of
from torchquilt.pt2e.observer_points import ConstantPoint
from torchquilt.spec.qspec import QuantizationSpec, ZeroPointDomain

_MEASURE = "output error, relative (MSE)"
#: Shares of the min-max range that are tried for the parameters of each output or group.
_SHARES = tuple(share / 100 for share in range(110, 49, -3))
#: A row of weights is rounded otherwise only where its error becomes smaller by more than this share.
_LEAST_GAIN = 1e-6


@attrs.frozen
class _Method:
    """Settings of a rounding.

    Args:
        name: ``"gptq"`` or ``"adaround"``.
        damping: of GPTQ.
        steps: of AdaRound.
        choose_scales: whether scales are chosen, too.
    """

    name: str
    damping: float
    steps: int
    choose_scales: bool

    def round(self, weight: torch.Tensor, levels: Levels, moments: torch.Tensor) -> torch.Tensor:
        """Integers, as float64."""
        if self.name == "adaround":
            return adaround(weight, levels, moments, self.steps)
        return gptq(weight, levels, moments, self.damping)


def round_weights(
    prepared: GraphModule,
    batches: Iterable[object],
    *,
    method: str = "gptq",
    choose_scales: bool = True,
    damping: float = 0.05,
    steps: int = 300,
    passes: int = 1,
) -> GraphModule:
    """Round the weights of linears and convolutions so that what these return is off as little as possible.

    The weights of a layer are rounded together: what one of them is off makes up for others, as far as the
    inputs that the batches bring go together. The error of an output is a quadratic form of the second
    moments of its inputs, which are summed up batch by batch. Inputs are taken as the quantized model sees
    them: with activations rounded, and after the first pass with the integers of the layers before. An output
    for which the nearest integers are better keeps these.

    The weights themselves stay in float. :func:`torchquilt.convert_pt2e` takes the integers that were chosen,
    bit for bit; they go with the model's ``state_dict()``. Training
    (:func:`torchquilt.prepare_qat_pt2e`) begins with the float weights.

    Args:
        prepared: what :func:`torchquilt.prepare_pt2e` returned, calibrated where activations are static. It
            is left as it was.
        batches: what :func:`torchquilt.calibrate` takes; some dozens of samples do. They are gone through
            ``passes`` times, so those of a generator are kept.
        method: ``"gptq"`` (arXiv:2210.17323), or ``"adaround"`` (arXiv:2004.10568), which takes longer.
        choose_scales: choose the scale of each output (or group) anew, by the error that the nearest integers
            make with it. Not where outputs share a scale.
        damping: of GPTQ, > 0: the more, the less the integers follow these very batches.
        steps: of AdaRound's optimisation, for each layer.
        passes: the layers are taken in so many sets, in the order of the graph. The more, the less memory
            is needed: a square matrix of the width of each layer of a set. Four instead of one took another
            percent off the error of all-MiniLM-L6-v2.

    Returns:
        A copy with the same calibration. :func:`steps_of` says for each layer what the error of its output
        was and is, and why others were left.

    Raises:
        ModelError: the model is not a prepared one, or is prepared for training.
        AccuracyError: a setting is none, there is no batch, or one does not go through the model.
        CalibrationError: a constant cannot be quantized as asked.
    """
    _check(prepared, method, damping, steps, passes)
    given = list(checked_batches(batches, prepared))
    how = _Method(method, damping, steps, choose_scales)
    with default_global_state(), torch.no_grad():
        model = copy_model(prepared)
        generate_code(model)
        running = simulated_copy(model)
        weights, left = _find(running, model)
        runnable = _looking(running, weights)
        rounded: list[tuple[_Weight, Gain | str]] = []
        for chosen in _sets(weights, passes):
            _collect(runnable, given, chosen)
            rounded += [(weight, _round(weight, how)) for weight in chosen]
            for weight in chosen:
                weight.forget()
        if not weights:
            list(numbered(given))
        settle(model)
    applied = [(weight, gain) for weight, gain in rounded if isinstance(gain, Gain)]
    left += [(weight.name, told) for weight, told in rounded if isinstance(told, str)]
    gains = tuple(gain for _, gain in applied)
    note_step(model, RecoveryStep("round_weights", tuple(gain.node for gain in gains), tuple(left), gains))
    return model


def _check(prepared: object, method: str, damping: float, steps: int, passes: int) -> None:
    if stage_of(prepared) != "prepared":
        raise ModelError(
            "Only a prepared model can have its weights rounded.",
            expected="what prepare_pt2e returned, calibrated",
            got=stage_in_words(prepared),
            remedy="call it between calibrate and convert_pt2e",
        )
    for what, fits, expected, got in (
        ("a method", method in ("gptq", "adaround"), "'gptq' | 'adaround'", method),
        ("a damping", damping > 0, "damping > 0", damping),
        ("a number of steps", steps >= 1, "steps >= 1", steps),
        ("a number of passes", passes >= 1, "passes >= 1", passes),
    ):
        if not fits:
            raise AccuracyError(f"This is not {what} to round with.", expected=expected, got=repr(got))


@attrs.define(eq=False)
class _Weight:
    """A constant whose integers are chosen, and the layers that read it.

    Args:
        name: of the first operator that reads it.
        value: it.
        spec: of it.
        readings: the operators that read it.
        region: of them.
        points: those of the model that is made.
        stand_ins: those of the model that is run.
        moments: of the inputs of the layers; those of one input are shared by several weights.
    """

    name: str
    value: torch.Tensor
    spec: QuantizationSpec
    readings: tuple[Reading, ...]
    region: Region
    points: tuple[ConstantPoint, ...]
    stand_ins: tuple[Replacing, ...]
    moments: tuple[_Collecting, ...] = ()

    @property
    def layout(self) -> Layout:
        """Layout that its layers have in common."""
        return self.readings[0].layout

    def summed(self) -> torch.Tensor | None:
        """Moments of all inputs, float64; None where no layer was reached."""
        found = [one.moments.sums for one in self.moments if one.moments.sums is not None]
        return torch.stack([sums.double() for sums in found]).sum(0) if found else None

    def choose(self, chosen: ChosenConstant) -> None:
        """Take these integers, in both models."""
        for point in self.points:
            point.chosen = chosen
        for stand_in in self.stand_ins:
            stand_in.chosen = chosen

    def forget(self) -> None:
        """Let go of the moments."""
        for one in self.moments:
            one.is_on, one.moments.sums = False, None


class _Collecting(torch.nn.Module):
    """Stands before layers that read the same, and sums up the moments of it while it is told to."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.moments = Moments(layout)
        self.is_on = False

    def forward(self, value: torch.Tensor) -> None:
        """Take in an input."""
        if self.is_on:
            self.moments.update(value)


def _find(running: GraphModule, model: GraphModule) -> tuple[list[_Weight], list[tuple[str, str]]]:
    """The weights that can be rounded, in the order of the graph, and why others cannot."""
    weights: list[_Weight] = []
    left: list[tuple[str, str]] = []
    for region in regions(running):
        points = {name: one for name, one in region.module.named_children() if isinstance(one, Replacing)}
        for calls, value in _constants(region, points, left):
            found = _weight(region, calls, value, model)
            if isinstance(found, _Weight):
                weights.append(found)
            elif found is not None:
                left.append(found)
    return weights, left


def _constants(
    region: Region, points: dict[str, Replacing], left: list[tuple[str, str]]
) -> Iterator[tuple[list[Node], torch.Tensor]]:
    """The calls of points at each constant, those that quantize it alike together, and its value."""
    graph = region.module.graph
    constants = constant_nodes(graph, points)
    at: dict[Any, dict[Node, list[Node]]] = {}
    for node in graph.find_nodes(op="call_module"):
        if node.target in points and node in constants:
            origin = node
            while origin.op == "call_module":
                (origin,) = origin.all_input_nodes
            at.setdefault(points[str(node.target)], {}).setdefault(origin, []).append(node)
    alike: dict[Any, list[Node]] = {}
    for point, origins in at.items():
        if len(origins) > 1:
            readers = [user for calls in origins.values() for call in calls for user in call.users]
            left += [(region.name_of(one), "its weight shares its parameters with others") for one in readers]
            continue
        ((origin, calls),) = origins.items()
        alike.setdefault((origin, point.spec), []).extend(calls)
    order = {node: number for number, node in enumerate(graph.nodes)}
    for (origin, _), calls in alike.items():
        calls.sort(key=order.__getitem__)
        yield calls, constant_value(region.module, origin, points)


def _weight(
    region: Region, calls: list[Node], value: torch.Tensor, model: GraphModule
) -> _Weight | tuple[str, str] | None:
    """A weight, or the name of an operator that reads it and why it is left; None for what is no weight."""
    reads = [(user, call) for call in calls for user in call.users]
    if value.dim() < 2 or not reads:
        return None
    name = region.name_of(reads[0][0])
    readings: list[Reading] = []
    for user, call in reads:
        found = reading_of(user, call)
        if isinstance(found, str):
            return name, found
        readings.append(found)
    stand_ins = tuple(dict.fromkeys(region.module.get_submodule(str(call.target)) for call in calls))
    prefix = f"{region.path}." if region.path else ""
    points = tuple(dict.fromkeys(model.get_submodule(f"{prefix}{call.target}") for call in calls))
    spec = stand_ins[0].spec
    assert isinstance(spec, QuantizationSpec)
    if len({reading.layout for reading in readings}) > 1:
        return name, "the operators that read its weight read it in different ways"
    if spec.zero_point_domain is ZeroPointDomain.FLOAT:
        return name, "its zero point is no integer"
    if not value.numel() or not bool(value.isfinite().all()):
        return name, "its weight has elements that are NaN or infinite" if value.numel() else "it is empty"
    own: Any = (points, stand_ins)
    return _Weight(name, value, spec, tuple(readings), region, *own)


def _looking(running: GraphModule, weights: Iterable[_Weight]) -> Runnable:
    """The model that is run, with modules before all layers that sum up moments."""
    standing: dict[Any, _Collecting] = {}
    for weight in weights:
        for reading in weight.readings:
            key = (reading.input, reading.layout)
            if key not in standing:
                standing[key] = _Collecting(reading.layout)
                look_at(weight.region, standing[key], reading.node, (reading.input,))
        keys = ((reading.input, reading.layout) for reading in weight.readings)
        weight.moments = tuple(dict.fromkeys(standing[key] for key in keys))
    return Runnable(finished(running), "prepared model")


def _sets(weights: list[_Weight], passes: int) -> Iterator[list[_Weight]]:
    """The weights in about as many sets, those that read the same input in one."""
    by_input: dict[Any, list[_Weight]] = {}
    for weight in weights:
        by_input.setdefault(weight.moments, []).append(weight)
    groups = list(by_input.values())
    size = -(-len(groups) // passes) or 1
    for start in range(0, len(groups), size):
        yield [weight for group in groups[start : start + size] for weight in group]


def _collect(runnable: Runnable, batches: list[Any], weights: list[_Weight]) -> None:
    for weight in weights:
        for one in weight.moments:
            one.is_on = True
    run_on_each(batches, runnable, "collecting inputs of weights")


def _round(weight: _Weight, method: _Method) -> Gain | str:
    """Choose the integers of one weight, and say what that gains, or why they stay the nearest ones."""
    moments = weight.summed()
    if moments is None or not bool(moments.any()):
        return "no batch reached it, or with zeros alone"
    if not bool(moments.isfinite().all()):
        return "its inputs have elements that are NaN or infinite"
    spec, layout, value = weight.spec, weight.layout, weight.value
    current = _current(weight)
    rows = layout.rows(value).double()
    own = has_own_parameters(layout, spec, value.dim())
    qparams = current.qparams
    if own and method.choose_scales:
        qparams = _scales(weight, rows, moments)
    levels = _levels(qparams, weight)
    found = method.round(rows, levels, moments)
    assert current.integers is not None
    before = output_errors(
        _levels(current.qparams, weight).values(layout.rows(current.integers)) - rows, moments
    )
    after = output_errors(levels.values(found) - rows, moments)
    is_better = after < before * (1 - _LEAST_GAIN)
    if not bool(is_better.any()):
        return "the integers that it has make the smallest error"
    keeps = is_better[..., None]
    integers = torch.where(keeps, found.to(spec.dtype), layout.rows(current.integers))
    if own:
        is_new = layout.weight(keeps.expand(rows.shape), value.shape)
        by_parameter = as_rows(is_new, spec)[0][:, 0].reshape(qparams.scale.shape)
        pairs = zip(qparams, current.qparams, strict=True)
        qparams = QParams(*(torch.where(by_parameter, new, old) for new, old in pairs))
    weight.choose(ChosenConstant(qparams, layout.weight(integers, value.shape).contiguous()))
    unit = max(float(output_errors(rows, moments).sum()), torch.finfo(torch.float64).tiny)
    errors = (float(error.sum()) / unit for error in (before, torch.minimum(before, after)))
    return Gain(weight.name, _MEASURE, *errors)


def _current(weight: _Weight) -> ChosenConstant:
    """The integers that convert would store as the model is."""
    point = weight.points[0]
    if point.chosen is not None and point.chosen.integers is not None:
        return point.chosen
    return ChosenConstant.nearest(weight.value, weight.spec, point.qparams_for([weight.value]))


def _levels(qparams: QParams, weight: _Weight) -> Levels:
    spec, value = weight.spec, weight.value
    like = as_rows(value, spec)[0]
    scale, zero_point = (
        weight.layout.rows(back_from_rows(each.reshape(-1, 1).expand(like.shape), value, spec)).double()
        for each in qparams
    )
    return Levels(scale, zero_point, spec.quant_min, spec.quant_max)


def _scales(weight: _Weight, rows: torch.Tensor, moments: torch.Tensor) -> QParams:
    """For each set of parameters those of the share of the min-max range whose nearest integers err least.

    Errors of the elements are taken as if they did not go together: weighted with the square of the inputs.
    """
    spec, value, layout = weight.spec, weight.value, weight.layout
    observer = MinMaxObserver(spec)
    observer.update(value)
    low, high = observer.range()
    squares = moments.diagonal(dim1=1, dim2=2)[:, None]
    best: QParams | None = None
    least = torch.zeros(())
    for share in _SHARES:
        qparams = qparams_of_range(low * share, high * share, spec)
        levels = _levels(qparams, weight)
        off = levels.values(levels.nearest(rows)).sub_(rows).square_().mul_(squares)
        error = as_rows(layout.weight(off, value.shape), spec)[0].sum(1).reshape(qparams.scale.shape)
        if best is None:
            best, least = qparams, error
            continue
        is_better = error < least
        pairs = zip(qparams, best, strict=True)
        best = QParams(*(torch.where(is_better, new, old) for new, old in pairs))
        least = torch.where(is_better, error, least)
    assert best is not None
    return best
