"""Choice of ranges by the error of what reads a tensor, instead of by that of the tensor itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import torch
from torch.fx import GraphModule, Node

from torchquilt._internal.torch_defaults import default_global_state
from torchquilt._internal.torch_private import pytree
from torchquilt.accuracy.recovery.simulation import finished, float_copy_of, has_range, look_at, rounded
from torchquilt.accuracy.recovery.steps import Gain, RecoveryStep, note_step
from torchquilt.accuracy.running import Runnable, checked_batches, run_on_each
from torchquilt.errors import ModelError
from torchquilt.graph.code_generation import generate_code
from torchquilt.graph.edits import copy_model
from torchquilt.graph.node_values import has_no_effect, is_float_tensor
from torchquilt.graph.subgraphs import Region, regions
from torchquilt.observers import Observer, QParams
from torchquilt.observers.bins import NO_DATA_FROM
from torchquilt.observers.histogram import HistogramObserver
from torchquilt.pt2e.choices import ChosenRange
from torchquilt.pt2e.model_record import stage_in_words, stage_of
from torchquilt.pt2e.observer_points import ObservedPoint
from torchquilt.spec.qspec import QuantizationSpec

_MEASURE = "output error of what reads it, relative (MSE)"
#: Shares of the observed range that are tried.
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
#: Shares of the values that a range may hold, of those whose observer counts them.
_QUANTILES = (0.9999, 0.999, 0.99)
#: A range is changed where the error becomes smaller by more than this share: less is chance.
_LEAST_GAIN = 0.02


def choose_ranges(prepared: GraphModule, batches: Iterable[object]) -> GraphModule:
    """Choose the range of each activation by the error that it makes in the outputs of what reads it.

    Calibration chooses the range of least error of the tensor itself. A few large values may matter more to
    the operators that read it, or less. So each of them is run with the tensor rounded in a dozen ranges:
    shares of what was observed, quantiles, and the range that calibration chose, which is kept unless another
    one is better by two percent. Everything else is in float meanwhile. Calibrating further does not move a
    chosen range.

    Args:
        prepared: what :func:`torchquilt.prepare_pt2e` returned, calibrated. It is left as it was.
        batches: what :func:`torchquilt.calibrate` takes. They are read once, one at a time.

    Returns:
        A copy with other ranges, which :func:`torchquilt.convert_pt2e` takes. :func:`steps_of` says for each
        tensor what the error of its readers was and is.

    Raises:
        ModelError: the model is not a prepared one, or is prepared for training.
        AccuracyError: there is no batch, or one does not go through the model.
    """
    if stage_of(prepared) != "prepared":
        raise ModelError(
            "Only a calibrated model can have its ranges chosen.",
            expected="what prepare_pt2e returned, calibrated",
            got=stage_in_words(prepared),
            remedy="call it between calibrate and convert_pt2e",
        )
    with default_global_state(), torch.no_grad():
        model = copy_model(prepared)
        generate_code(model)
        tried, left = _look(model, running := float_copy_of(model))
        runnable = Runnable(finished(running), "prepared model")
        run_on_each(checked_batches(batches, prepared), runnable, "choosing ranges")
        gains: list[Gain] = []
        for each in tried:
            told = _choose(each)
            if isinstance(told, Gain):
                gains.append(told)
            else:
                left.append((each.name, told))
    note_step(model, RecoveryStep("choose_ranges", [gain.node for gain in gains], left, gains))
    return model


@attrs.define(eq=False)
class _Tried:
    """A point whose range is chosen.

    Args:
        point: of the model that is made.
        name: of its first edge or node.
        ranges: the candidates; the first is what it has.
        qparams: theirs.
        errors: of each, summed over the readers, each in parts of its signal; float64.
    """

    point: ObservedPoint
    name: str
    ranges: tuple[ChosenRange, ...]
    qparams: tuple[QParams, ...]
    readers: list[_Reader] = attrs.field(factory=list)

    def errors(self) -> torch.Tensor | None:
        """The error with each candidate, ``[candidates]``; None where no reader was reached."""
        found = [one.noise / one.signal for one in self.readers if one.signal > 0]
        return torch.stack(found).sum(0) if found else None


class _Reader(torch.nn.Module):
    """Stands before an operator, and runs it with the tensor rounded in each range.

    Args:
        tried: the point of the tensor.
        target: the operator; None for what is not run: then the error is that of the tensor.
        structure: of its arguments.
        at: the numbers of those arguments that are the tensor.
    """

    def __init__(self, tried: _Tried, target: Any, structure: Any, at: tuple[int, ...]) -> None:
        super().__init__()
        self._tried = (tried,)  # in a tuple, so that its point is no submodule
        self._target, self._structure, self._at = target, structure, at
        self.noise = torch.zeros(len(tried.ranges), dtype=torch.float64)
        self.signal = 0.0

    def forward(self, *leaves: Any) -> None:
        """Take in what the operator reads."""
        (tried,) = self._tried
        expected = self._run(leaves)
        # What a mask was added to is no data, and would outweigh all that is.
        ordinary = [one.abs() < NO_DATA_FROM for one in expected]
        self.signal += sum(_square(one[data]) for one, data in zip(expected, ordinary, strict=True))
        spec = tried.point.spec
        for number, qparams in enumerate(tried.qparams):
            changed = list(leaves)
            for position in self._at:
                changed[position] = rounded(leaves[position], spec, qparams)
            found = self._run(changed)
            for one, other, data in zip(found, expected, ordinary, strict=True):
                self.noise[number] += _square(one[data].float() - other[data].float())

    def _run(self, leaves: Iterable[Any]) -> list[torch.Tensor]:
        if self._target is None:
            return [*leaves]
        args, kwargs = pytree.tree_unflatten([*leaves], self._structure)
        outputs = pytree.tree_leaves(self._target(*args, **kwargs))
        return [one for one in outputs if isinstance(one, torch.Tensor) and one.is_floating_point()]


def _square(tensor: torch.Tensor) -> float:
    return float(tensor.double().square().sum())


def _look(model: GraphModule, running: GraphModule) -> tuple[list[_Tried], list[tuple[str, str]]]:
    """The points whose ranges can be chosen, with modules at all that reads them; and why others cannot."""
    found: list[_Tried] = []
    left: list[tuple[str, str]] = []
    for region in regions(running):
        prefix = f"{region.path}." if region.path else ""
        calls: dict[str, list[Node]] = {}
        for node in region.module.graph.find_nodes(op="call_module"):
            calls.setdefault(str(node.target), []).append(node)
        for name, at in calls.items():
            point = model.get_submodule(f"{prefix}{name}")
            if not isinstance(point, ObservedPoint):
                continue
            if not has_range(point):
                left.append((point.names[0], "calibration never reached it"))
                continue
            ranges = _candidates(point)
            qparams = tuple(one.qparams(point.spec) for one in ranges)
            tried = _Tried(point, point.names[0], ranges, qparams)
            for call in at:
                _look_at_readers(region, call, tried)
            found.append(tried)
    return found, left


def _look_at_readers(region: Region, call: Node, tried: _Tried) -> None:
    readers = [user for user in call.users if _can_be_run(user)]
    for user in readers:
        leaves, structure = pytree.tree_flatten((user.args, user.kwargs))
        at = tuple(number for number, leaf in enumerate(leaves) if leaf is call)
        tried.readers.append(_Reader(tried, user.target, structure, at))
        look_at(region, tried.readers[-1], user, leaves)
    others = [user for user in call.users if user not in readers and user.op != "call_module"]
    # One module stands for all that is not run, and for what other points read.
    if others or not readers:
        following = next(iter(call.users), None) or call.next
        tried.readers.append(_Reader(tried, None, None, (0,)))
        look_at(region, tried.readers[-1], following, (call,))


def _can_be_run(user: Node) -> bool:
    """Whether an operator can be run several times, and returns a tensor whose error tells something."""
    return hasattr(user.target, "_schema") and has_no_effect(user) and is_float_tensor(user)


def _candidates(point: ObservedPoint) -> tuple[ChosenRange, ...]:
    """Ranges to try: what the point has, then others."""
    low, high = point.range()
    found = [ChosenRange(low, high)]
    found += _others(point.observer, point.spec)
    kept: dict[tuple[bytes, bytes], ChosenRange] = {}
    for one in found:
        qparams = one.qparams(point.spec)
        key = (qparams.scale.numpy().tobytes(), qparams.zero_point.numpy().tobytes())
        kept.setdefault(key, one)
    return tuple(kept.values())


def _others(observer: Observer, spec: QuantizationSpec) -> Iterator[ChosenRange]:
    low, high = observer.range()
    if isinstance(observer, HistogramObserver):
        bins = observer.bins()
        low, high = (torch.tensor(end, dtype=torch.float32) for end in (bins.low, bins.high))
        for share in _QUANTILES:
            ends = bins.quantile(1 - share), bins.quantile(share)
            yield _range(*(torch.tensor(end, dtype=torch.float32) for end in ends))
    for share in _SHARES:
        yield _range(low * share, high * share)


def _range(low: torch.Tensor, high: torch.Tensor) -> ChosenRange:
    return ChosenRange(low.cpu().clamp(max=0.0), high.cpu().clamp(min=0.0))


def _choose(tried: _Tried) -> Gain | str:
    errors = tried.errors()
    if errors is None:
        return "no batch reached it, or with zeros alone"
    if not bool(errors[0].isfinite()):
        return "what reads it returns NaN or infinite values"
    errors = errors.nan_to_num(nan=torch.inf)
    best = int(errors.argmin())
    if errors[best] >= errors[0] * (1 - _LEAST_GAIN):
        return "the range that it has makes the smallest error"
    tried.point.chosen = tried.ranges[best]
    return Gain(tried.name, _MEASURE, float(errors[0]), float(errors[best]))
