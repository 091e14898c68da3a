"""compare_targets: one float model, quantized for and run on several runtimes, side by side."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
from torch.export import ExportedProgram

from torchquilt._internal.terminal import progress_if
from torchquilt.accuracy.error_statistics import ErrorStatistics
from torchquilt.accuracy.running import Runnable, float_copy, quantized_copy
from torchquilt.accuracy.target_values import TargetComparison, TargetFigures
from torchquilt.errors import AccuracyError, TorchquiltError, VerificationError, did_you_mean
from torchquilt.graph.signature import call_arguments
from torchquilt.ledger.ledger import Ledger
from torchquilt.lowering import LoweredProgram, lower
from torchquilt.lowering.target_choice import installed_targets
from torchquilt.plugins import registry
from torchquilt.pt2e.calibration.calibrate import calibrate
from torchquilt.pt2e.convert import convert_pt2e
from torchquilt.pt2e.prepare import prepare_pt2e
from torchquilt.quantizers.base import Quantizer, as_quantizer
from torchquilt.reasons import INTEGER_STATUSES

#: Runs before those that are measured: a runtime may compile or arrange memory in the first ones.
_WARM_UP = 3


def compare_targets(
    exported: ExportedProgram,
    targets: Mapping[str, object] | str,
    calibration: Iterable[object],
    example_inputs: object,
    *,
    activation_observer: Any = "histogram",
    runs: int = 20,
    progress: bool = True,
) -> TargetComparison:
    """Quantize a model for several runtimes, run it on each, and put the figures side by side.

    Each target gets the model as its own quantizer quantizes it, calibrated on the same batches, and the same
    float model for comparison. All programs run in turns in this process, so that what disturbs one disturbs
    all. A target on which something fails has a row that says what; the others are measured. A program that
    computes something else than its quantized model, as :func:`torchquilt.lower` finds, has a caution.

    Args:
        exported: the float model; it stays as it was.
        targets: name of an installed lowering target → quantizer for it, as :func:`torchquilt.prepare_pt2e`
            takes it: an object, or ``"backend:preset"``. Or the name of a preset: then each installed target,
            with an installed backend that has the preset and runs there.
        calibration: batches as for :func:`torchquilt.calibrate`. They are read once for each target.
        example_inputs: one batch, which all programs are run and compared on.
        activation_observer: as for :func:`torchquilt.prepare_pt2e`.
        runs: each time is the median of so many runs.
        progress: show how far it is on standard error, where that is a terminal.

    Raises:
        AccuracyError: there is no target, or no run to measure.
        ModelError: the model is not an exported float model.
        IntentError: what is given for a target is no quantizer.
        PluginNotFoundError, PluginLoadError, PluginConflictError, UnsupportedConfigError: a target, a backend
            or a preset is not installed, or does not load.
    """
    if isinstance(targets, str):
        targets = targets_with(targets)
    _check(targets, runs)
    for target in targets:
        registry.target(target)
    quantizers = {target: as_quantizer(given) for target, given in targets.items()}
    batches = calibration if _is_read_again(calibration) else [*calibration]
    reference = float_copy(exported)
    expected = Runnable(reference, "float model")(example_inputs, 0)
    measured: dict[str, _OnTarget | TargetFigures] = {}
    with progress_if(progress, "lowering", len(targets), "targets") as show:
        for number, (target, quantizer) in enumerate(quantizers.items()):
            given = targets[target] if isinstance(targets[target], str) else quantizer.name
            one = _Work(exported, target, quantizer, str(given), activation_observer)
            measured[target] = one.done(batches, example_inputs, expected)
            show(number + 1)
    args, kwargs = call_arguments(reference, example_inputs)
    made = {target: one for target, one in measured.items() if isinstance(one, _OnTarget)}
    times = _times({target: one.runs(args, kwargs) for target, one in made.items()}, runs)
    rows = (
        one.timed(times[target]) if isinstance(one, _OnTarget) else one for target, one in measured.items()
    )
    return TargetComparison(tuple(rows), runs, {target: one.program for target, one in made.items()})


def targets_with(preset: str) -> dict[str, str]:
    """Each installed target with a backend that has a preset of this name and runs there.

    A backend that has the name of the target is the first choice.

    Raises:
        AccuracyError: there is none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the environment, of which loading a plugin warns
        backends = [one for one in registry.backends() if one.status == "ok" and one.manifest]
    found: dict[str, str] = {}
    for target in installed_targets():
        able = [
            one.name
            for one in backends
            if one.manifest and target in one.manifest.targets and preset in one.manifest.preset_names
        ]
        if able:
            found[target] = f"{target if target in able else able[0]}:{preset}"
    if not found:
        presets = {name for one in backends if one.manifest for name in one.manifest.preset_names}
        raise AccuracyError(
            f"No installed backend has a preset {preset!r} and runs on an installed target.",
            expected=f"one of: {', '.join(sorted(presets))}",
            got=preset,
            remedy=did_you_mean(preset, sorted(presets)) or "install a backend and a target",
        )
    return found


def _check(targets: Mapping[str, object], runs: int) -> None:
    if not isinstance(targets, Mapping) or not targets:
        raise AccuracyError(
            "There is no target to compare.",
            expected="{'executorch': 'xnnpack:static_int8_per_channel', …}",
            got=repr(targets),
            remedy=f"name installed targets: {', '.join(installed_targets()) or 'none is installed'}",
        )
    if isinstance(runs, bool) or not isinstance(runs, int) or runs < 1:
        raise AccuracyError(
            "A time is the median of at least one run.",
            expected="a number of runs from 1",
            got=f"runs={runs!r}",
            remedy="leave it out for 20",
        )


def _is_read_again(batches: Iterable[object]) -> bool:
    """Whether batches can be read several times, as those of a list or a DataLoader."""
    return iter(batches) is not batches


@attrs.frozen(eq=False)
class _OnTarget:
    """A model on a target, with the float model beside it, and the figures but for the times."""

    figures: TargetFigures
    program: LoweredProgram
    float_program: LoweredProgram | None

    def runs(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Callable[[], Any]]:
        """Runs to be timed: of the program, and of the float program if there is one."""
        programs = [self.program, *([self.float_program] if self.float_program else [])]
        return [lambda program=program: program.run(*args, **kwargs) for program in programs]  # type: ignore[misc]

    def timed(self, seconds: Sequence[float]) -> TargetFigures:
        """The figures with the times of the runs."""
        own, *of_float = (1e3 * one for one in seconds)
        return attrs.evolve(self.figures, ms=own, float_ms=next(iter(of_float), None))


@attrs.frozen(eq=False)
class _Work:
    """Steps for one target: quantize, lower, compare."""

    exported: ExportedProgram
    target: str
    quantizer: Quantizer
    quantizer_text: str
    activation_observer: Any

    def done(
        self, batches: Iterable[object], example_inputs: object, expected: Sequence[Any]
    ) -> _OnTarget | TargetFigures:
        """The programs with their figures, or a row that says what failed."""
        try:
            return self._made(batches, example_inputs, expected)
        except TorchquiltError as error:
            return TargetFigures(self.target, self.quantizer_text, failed=" ".join(str(error).split()))

    def _made(self, batches: Iterable[object], example_inputs: object, expected: Sequence[Any]) -> _OnTarget:
        prepared = prepare_pt2e(self.exported, self.quantizer, activation_observer=self.activation_observer)
        quantized = convert_pt2e(calibrate(prepared, batches, progress=False))
        program, caution = self._lowered(quantized, example_inputs)
        in_float = self._float_program(program.backends, example_inputs)
        args, kwargs = call_arguments(quantized, example_inputs)
        found = _leaves(program.run(*args, **kwargs))
        of_quantized = Runnable(quantized_copy(quantized), "quantized model")(example_inputs, 0)
        figures = TargetFigures(
            target=self.target,
            quantizer=self.quantizer_text,
            integer_share=_share(program.ledger, in_program=True),
            quantized_share=_share(program.ledger, in_program=False),
            sqnr_to_quantized=_worst_sqnr(of_quantized, found),
            sqnr_to_float=_worst_sqnr(expected, found),
            nbytes=program.size,
            float_nbytes=in_float.size if in_float else None,
            integer_kernels=len(program.integer_operations),
            caution=caution,
        )
        return _OnTarget(figures, program, in_float)

    def _lowered(self, quantized: Any, example_inputs: object) -> tuple[LoweredProgram, str]:
        """The program, and how it differs from the quantized model by more than roundings; mostly not."""
        try:
            return lower(quantized, example_inputs, target=self.target), ""
        except VerificationError as error:
            program = lower(quantized, example_inputs, target=self.target, verify=False)
            return program, f"{error.problem} {error.got}"

    def _float_program(self, backends: tuple[str, ...], example_inputs: object) -> LoweredProgram | None:
        """The float model on the same target, None where the target does not take or run it."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = lower(
                    self.exported, example_inputs, target=self.target, backends=backends, verify=False
                )
            args, kwargs = call_arguments(float_copy(self.exported), example_inputs)
            program.run(*args, **kwargs)
        except TorchquiltError:
            return None
        return program


def _times(runs: Mapping[str, Sequence[Callable[[], Any]]], count: int) -> dict[str, list[float]]:
    """Median seconds of each run, all of them in turns."""
    flat = [(target, run) for target, of_target in runs.items() for run in of_target]
    for _, run in flat:
        for _ in range(_WARM_UP):
            run()
    seconds: list[list[float]] = [[] for _ in flat]
    for _ in range(count):
        for times, (_, run) in zip(seconds, flat, strict=True):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
    found: dict[str, list[float]] = {target: [] for target in runs}
    for (target, _), times in zip(flat, seconds, strict=True):
        found[target].append(statistics.median(times))
    return found


def _share(ledger: Ledger | None, *, in_program: bool) -> float:
    """Share of multiply-adds that are quantized: in the program, or as the quantizer decided."""
    if ledger is None:
        return 0.0
    rows = [
        row
        for row in ledger.quantized
        if not in_program or (row.lowered is not None and row.lowered.code in INTEGER_STATUSES)
    ]
    whole = sum(row.macs for row in ledger.rows)
    return sum(row.macs for row in rows) / whole if whole else 0.0


def _leaves(outputs: Any) -> list[Any]:
    from torchquilt._internal.torch_private import pytree

    return list(pytree.tree_leaves(outputs))


def _worst_sqnr(expected: Sequence[Any], found: Sequence[Any]) -> float:
    """The smallest signal to noise of all outputs in floating point."""
    import torch

    worst = float("inf")
    for one, other in zip(expected, found, strict=True):
        if isinstance(one, torch.Tensor) and one.is_floating_point():
            statistics_of = ErrorStatistics()
            statistics_of.update(one, other)
            worst = min(worst, statistics_of.figures().sqnr)
    return worst
