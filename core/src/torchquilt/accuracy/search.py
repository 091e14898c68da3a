"""search: decisions about each module with which a model is as good as wanted, and costs the least.

Estimates order the candidates, and the metric decides. The search begins with what the user's quantizer
decides. Moves that help most for what they cost are made first: to another kind of integers where that costs
no multiply-add in float, and then to float. How many of them are needed is found by doubling and halving.
Last, each move is taken back if the model is good enough without it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs
from torch.export import ExportedProgram
from torch.fx import GraphModule

from torchquilt._internal.terminal import progress_if
from torchquilt.accuracy.candidates import find_candidates
from torchquilt.accuracy.evaluations import Evaluations, check_state, identity_of_metrics
from torchquilt.accuracy.judging import Judge, Limits, OutOfEvaluationsError, key_of
from torchquilt.accuracy.metric import Evaluate, Metric, allowed_drop
from torchquilt.accuracy.moves import Moves
from torchquilt.accuracy.recovered import Recovered
from torchquilt.accuracy.search_values import Candidate, SearchResult
from torchquilt.accuracy.units import Choice
from torchquilt.accuracy.variants import Size
from torchquilt.errors import AccuracyError
from torchquilt.observers import ObserverFactory
from torchquilt.plugins import registry
from torchquilt.pt2e.calibration.merging import Calibration

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: So many moves are tried to be taken back at a time, whatever the number of ranks: so these find the same.
_WAVE = 4
#: Estimates are taken from so many batches for each kind of candidates: they only order them.
_ESTIMATED_BATCHES = 2


def search(
    exported: ExportedProgram | GraphModule,
    quantizer: object,
    calibration: Iterable[object] | Calibration,
    evaluate: Evaluate,
    *,
    minimize: bool = False,
    max_drop: float | str | None = None,
    max_bytes: int | None = None,
    max_macs_float: int | None = None,
    max_latency_ms: float | None = None,
    target: str | None = None,
    recovery: Sequence[str] = (),
    activation_observer: str | ObserverFactory = "histogram",
    max_evaluations: int = 100,
    limit: int = _ESTIMATED_BATCHES,
    state: str | os.PathLike[str] | None = None,
    group: ProcessGroup | None = None,
    progress: bool = True,
) -> SearchResult:
    """Search for decisions about each module with which the model is within the limits, and costs the least.

    Candidates are what the composition's backends can do with each module: each of their presets that
    quantizes something in it, and float. Modules that a rule of the user's leaves in float stay in float.
    With ``max_drop``, the fewest multiply-adds in float are looked for with which the metric does not drop by
    more; without it, the best metric within the other limits.

    The search is deterministic. Ctrl-C ends it with the best variant so far.

    Args:
        exported: the float model; it stays as it was.
        quantizer: where the search begins: what it decides is kept as long as that is good enough.
        calibration: batches as for :func:`torchquilt.calibrate`, or a :class:`torchquilt.Calibration`.
        evaluate: judges a model, which is called like the float one. Larger is better.
        minimize: smaller is better.
        max_drop: the metric is at most so much worse than that of the float model, in its unit, or as a share
            of it: ``"1%"``.
        max_bytes: parameters take at most so many bytes, those of 4 bits counted as such.
        max_macs_float: at most so many multiply-adds are in float, for the example shapes.
        max_latency_ms: a batch takes at most so long on the ``target``, as measured here.
        target: name of an installed lowering target.
        recovery: names of recovery passes (of :mod:`torchquilt.recovery`) that are tried, in this order: each
            is kept if the metric gets better by it.
        activation_observer: as for :func:`torchquilt.prepare_pt2e`.
        max_evaluations: judge at most so many variants.
        limit: estimate from at most so many batches.
        state: a file for the metrics. Where it exists, a search goes on where it was, to the same end.
        group: a process group (of ``torch.distributed``), every rank of which calls this with the same
            arguments. Variants are judged on all of them, and all return what one process finds.
        progress: show how far it is on standard error, where that is a terminal.

    Returns:
        The best variant with its quantizer and recipe, and the frontier of all that were judged.

    Raises:
        AccuracyError: a limit is none, the metric failed, or the state file is that of something else.
        ModelError, QuantizerError, CalibrationError, LoweringError: as the steps of the flow raise them.
    """
    if max_latency_ms is not None and target is None:
        raise AccuracyError(
            "A latency is that of a target.",
            expected="the name of an installed lowering target",
            got="max_latency_ms without target",
        )
    if target is not None:
        registry.target(target)  # one that is not there is told at once
    if max_drop is not None:
        allowed_drop(max_drop, 1.0)
    check_state(state)
    if max_evaluations < 1:
        raise AccuracyError(
            "A search judges at least what the quantizer decides.",
            expected="max_evaluations from 1",
            got=max_evaluations,
        )
    limits = Limits(max_bytes, max_macs_float, max_latency_ms, target)
    recovered = Recovered(exported, quantizer, calibration, activation_observer, recovery)
    metric = Metric(evaluate, minimize)
    prepared = recovered.prepared((), {}, progress=progress)
    identity = {**identity_of_metrics(prepared, metric), "recovery": repr(tuple(recovery))}
    evaluations = Evaluations(state, identity, group)
    with progress_if(progress, "searching", max_evaluations, "variants") as show:
        judge = Judge(recovered, metric, evaluations, limits, max_evaluations, show)
        float_metric = judge.of_float()
        goal = None if max_drop is None else allowed_drop(max_drop, float_metric)
        run = _Search(judge, float_metric, goal, limit)
        return attrs.evolve(run.result(), activation_observer=activation_observer)


class _Search:
    """One search: the moves, and how many of them are made."""

    def __init__(self, judge: Judge, float_metric: float, goal: float | None, limit: int) -> None:
        self.judge = judge
        self.metric = judge.metric
        self.float_metric = float_metric
        self.goal = goal
        self._limit = limit
        self._passes: tuple[str, ...] = ()
        self._choices: dict[str, Mapping[str, Choice]] = {}
        self._given: Candidate | None = None
        self._is_complete = False
        self._is_interrupted = False

    def result(self) -> SearchResult:
        """Search, until that is done, interrupted, or all evaluations are used up."""
        try:
            self._run()
            self._is_complete = True
        except OutOfEvaluationsError:
            pass
        except KeyboardInterrupt:
            if self._given is None:
                raise
            self._is_interrupted = True
        return self._made()

    def _run(self) -> None:
        recovered = self.judge.recovered
        (self._given,) = self._judged([{}])
        if self._is_good(self._given, {}):
            return
        self._try_recovery()
        variants = recovered.variants(self._passes)
        # Fewer bits are of no use where bytes are not limited: they only add noise.
        is_small = self.judge.limits.max_bytes is not None
        space = find_candidates(variants, variants.batches, self._limit, fewer_bits=is_small)
        moves = Moves.of(space, self.judge.limits)
        chosen = self._fewest(moves)
        if chosen is not None:
            self._take_back(moves, chosen)

    def _judged(self, many: Sequence[Mapping[str, Choice]]) -> list[Candidate]:
        for choices in many:  # before Ctrl-C can come between a variant and its choices
            self._choices[key_of(self._passes, choices)] = dict(choices)
        return self.judge(self._passes, many)

    def _is_good(self, found: Candidate, choices: Mapping[str, Choice]) -> bool:
        """Whether a variant is within all limits. Its latency is measured only where all else is."""
        limits = self.judge.limits
        if not limits.holds(Size(found.bytes, found.macs_float)):
            return False
        if self.goal is not None and self.metric.drop(self.float_metric, found.metric) > self.goal:
            return False
        longest = limits.max_latency_ms
        is_fast = longest is None or self.judge.latency(self._passes, choices) <= longest
        # Without a goal no metric is good enough.
        return is_fast and self.goal is not None

    def _try_recovery(self) -> None:
        """Keep each recovery pass with which the user's decisions get better."""
        best = self._given
        assert best is not None
        for name in self.judge.recovered.names:
            before = self._passes
            self._passes = (*before, name)
            (found,) = self._judged([{}])
            if self.metric.is_better(found.metric, best.metric):
                best = found
            else:
                self._passes = before

    def _fewest(self, moves: Moves) -> dict[str, Choice] | None:
        """The fewest moves with which a variant is good, by doubling and halving; None where none is."""
        tried, failed, good = 0, -1, None
        while good is None:
            if self._tried(moves.after(tried)):
                good = tried
            elif tried >= len(moves):
                return None
            else:
                failed, tried = tried, min(len(moves), 2 * tried or 1)
        while good - failed > 1:
            middle = (good + failed) // 2
            if self._tried(moves.after(middle)):
                good = middle
            else:
                failed = middle
        return moves.after(good)

    def _tried(self, choices: Mapping[str, Choice]) -> bool:
        (found,) = self._judged([choices])
        return self._is_good(found, choices)

    def _take_back(self, moves: Moves, chosen: dict[str, Choice]) -> None:
        """Take back the moves that are not needed, those first that save most multiply-adds in float."""
        pending = moves.by_saving(chosen)
        while pending:
            wave = pending[:_WAVE]
            many = {unit: moves.without(unit, chosen) for unit in wave}
            many = {unit: choices for unit, choices in many.items() if moves.is_cheaper(choices, chosen)}
            found = self._judged(list(many.values()))
            pairs = zip(many.items(), found, strict=True)
            kept = next((unit for (unit, choices), one in pairs if self._is_good(one, choices)), None)
            if kept is None:
                pending = pending[len(wave) :]
            else:
                chosen, pending = many[kept], pending[pending.index(kept) + 1 :]

    # --- The answer

    def _made(self) -> SearchResult:
        judged = self.judge.judged
        limits = self.judge.limits
        allowed = [key for key, one in judged.items() if self._is_allowed(one)]
        is_met = bool(allowed)
        sign = 1 if self.metric.minimize else -1

        def by_metric(key: str) -> tuple[float, int, int]:
            return sign * judged[key].metric, judged[key].macs_float, judged[key].bytes

        def by_cost(key: str) -> tuple[int, int, float]:
            return judged[key].macs_float, judged[key].bytes, sign * judged[key].metric

        if is_met:
            key = min(allowed, key=by_metric if self.goal is None else by_cost)
        else:
            within = [key for key, one in judged.items() if limits.holds(Size(one.bytes, one.macs_float))]
            key = min(within or judged, key=by_metric)
        best = judged[key]
        assert self._given is not None
        frontier = {
            (one.metric, one.bytes, one.macs_float): one
            for one in sorted(judged.values(), key=_changes, reverse=True)  # the fewest changes stay
            if not any(one.is_covered_by(other, minimize=self.metric.minimize) for other in judged.values())
        }
        recovered = self.judge.recovered
        return SearchResult(
            best,
            is_met,
            self._is_complete,
            tuple(sorted(frontier.values(), key=lambda one: (one.macs_float, one.bytes))),
            self.float_metric,
            self._given.metric,
            recovered.macs(),
            len(judged),
            recovered.base.composition.with_choices(self._choices[key]),
            self.metric.minimize,
            self._is_interrupted,
        )

    def _is_allowed(self, found: Candidate) -> bool:
        limits = self.judge.limits
        if not limits.holds(Size(found.bytes, found.macs_float)):
            return False
        if self.goal is not None and self.metric.drop(self.float_metric, found.metric) > self.goal:
            return False
        is_slow = found.latency_ms is None or found.latency_ms > (limits.max_latency_ms or 0.0)
        return limits.max_latency_ms is None or not is_slow


def _changes(found: Candidate) -> int:
    return len(found.choices) + len(found.recovery)
