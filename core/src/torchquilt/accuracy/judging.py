"""Judging: variants of a model within limits, each judged once and kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import attrs

from torchquilt.accuracy.evaluations import Evaluations
from torchquilt.accuracy.metric import Metric
from torchquilt.accuracy.recovered import Recovered
from torchquilt.accuracy.running import float_copy
from torchquilt.accuracy.search_values import Candidate
from torchquilt.accuracy.units import GIVEN, Choice, unit_name
from torchquilt.accuracy.variants import Size

#: Median of so many runs is the latency.
_RUNS = 11


@attrs.frozen
class Limits:
    """Limits of a search; None where there is none."""

    max_bytes: int | None
    max_macs_float: int | None
    max_latency_ms: float | None
    target: str | None

    def holds(self, size: Size) -> bool:
        """Whether a size is within the limits."""
        return (self.max_bytes is None or size.bytes <= self.max_bytes) and (
            self.max_macs_float is None or size.macs_float <= self.max_macs_float
        )


class OutOfEvaluationsError(Exception):
    """No more variants may be judged."""


class Judge:
    """Judges variants, each once."""

    def __init__(
        self,
        recovered: Recovered,
        metric: Metric,
        evaluations: Evaluations,
        limits: Limits,
        most: int,
        show: Callable[[int], None],
    ) -> None:
        self.recovered = recovered
        self.metric = metric
        self.evaluations = evaluations
        self.limits = limits
        self._most = most
        self._show = show
        #: key → the variant, of those that were judged
        self.judged: dict[str, Candidate] = {}

    def of_float(self) -> float:
        """Metric of the float model."""
        model = self.recovered.base.model
        wanted = {"float": lambda: self.metric(float_copy(model), "the float model")}
        return self.evaluations.get(wanted)[0]

    def __call__(self, passes: tuple[str, ...], many: Sequence[Mapping[str, Choice]]) -> list[Candidate]:
        """Judge several variants, on all ranks.

        Raises:
            OutOfEvaluationsError: that would be too many.
        """
        sizes = [self.recovered.size(passes, choices) for choices in many]
        keys = [key_of(passes, choices) for choices in many]
        new = [key for key in keys if key not in self.judged]
        if len(self.judged) + len(set(new)) > self._most:
            raise OutOfEvaluationsError
        wanted = {key: self._evaluation(passes, choices) for key, choices in zip(keys, many, strict=True)}
        values = dict(zip(wanted, self.evaluations.get(wanted), strict=True))
        for key, choices, size in zip(keys, many, sizes, strict=True):
            if key not in self.judged:
                named = tuple((unit_name(unit), str(choice)) for unit, choice in changed(choices).items())
                self.judged[key] = Candidate(values[key], size.bytes, size.macs_float, named, passes)
        self._show(len(self.judged))
        return [self.judged[key] for key in keys]

    def _evaluation(self, passes: tuple[str, ...], choices: Mapping[str, Choice]) -> Callable[[], float]:
        def compute() -> float:
            model = self.recovered.converted(passes, choices)
            return self.metric(model, f"a variant with {len(changed(choices))} changed modules")

        return compute

    def latency(self, passes: tuple[str, ...], choices: Mapping[str, Choice]) -> float:
        """Milliseconds for a batch on the target, measured once."""
        assert self.limits.target is not None
        target = self.limits.target
        key = f"latency on {target} of {key_of(passes, choices)}"
        found = self.evaluations.get({key: lambda: self._timed(passes, choices, target)})[0]
        judged = key_of(passes, choices)
        self.judged[judged] = attrs.evolve(self.judged[judged], latency_ms=found)
        return found

    def _timed(self, passes: tuple[str, ...], choices: Mapping[str, Choice], target: str) -> float:
        from torchquilt.graph.signature import call_arguments
        from torchquilt.lowering import lower

        batch = self.recovered.first_batch()
        model = self.recovered.converted(passes, choices)
        program = lower(model, batch, target=target, verify=False)
        args, kwargs = call_arguments(model, batch)
        times = []
        for _ in range(_RUNS):
            started = time.perf_counter()
            program.run(*args, **kwargs)
            times.append(time.perf_counter() - started)
        return sorted(times)[len(times) // 2] * 1000


def changed(choices: Mapping[str, Choice]) -> dict[str, Choice]:
    """The units that are not as the user's quantizer decides, in order of their names."""
    return {unit: choice for unit, choice in sorted(choices.items()) if choice != GIVEN}


def key_of(passes: tuple[str, ...], choices: Mapping[str, Choice]) -> str:
    """Text that names a variant, equal for equal ones."""
    decided = [f"{unit_name(unit)}={choice}" for unit, choice in changed(choices).items()]
    return "; ".join([*(f"+{name}" for name in passes), *decided]) or "given"
