"""Variants of a model with recovery passes: those over the float model, and those over a calibrated one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch.export import ExportedProgram
from torch.fx import GraphModule

from torchquilt.accuracy.recovery.bias_correction import correct_biases
from torchquilt.accuracy.recovery.equalization import equalize
from torchquilt.accuracy.recovery.range_choice import choose_ranges
from torchquilt.accuracy.recovery.range_splitting import split_ranges
from torchquilt.accuracy.recovery.rounding import round_weights
from torchquilt.accuracy.recovery.smoothing import smooth
from torchquilt.accuracy.units import Choice
from torchquilt.accuracy.variants import Decided, Size, Variants
from torchquilt.errors import AccuracyError, did_you_mean
from torchquilt.observers import ObserverFactory
from torchquilt.pt2e.calibration.merging import Calibration


class Recovered:
    """Makes variants with recovery passes.

    Args:
        exported, quantizer, calibration, activation_observer: as for :class:`Variants`.
        names: of the recovery passes that may be asked for.

    Raises:
        AccuracyError: there is no pass of that name.
    """

    def __init__(
        self,
        exported: ExportedProgram | GraphModule,
        quantizer: object,
        calibration: Iterable[object] | Calibration,
        activation_observer: str | ObserverFactory,
        names: Sequence[str],
    ) -> None:
        self.names = tuple(names)
        self._over_float, self._over_prepared = _passes()
        for name in names:
            _check_name(name, (*self._over_float, *self._over_prepared))
        self.base = Variants(exported, quantizer, calibration, activation_observer)
        if self.base.batches is None and names:
            raise AccuracyError(
                "Recovery passes look at data.",
                expected="batches of inputs as calibration data",
                got="a Calibration",
                remedy="pass the batches, or leave out recovery",
            )
        self._quantizer, self._observer = quantizer, activation_observer
        self._variants: dict[tuple[str, ...], Variants] = {(): self.base}
        self._decided: dict[Any, Decided] = {}
        self._sizes: dict[Any, Size] = {}

    def variants(self, passes: tuple[str, ...]) -> Variants:
        """Variants of the float model after passes over it."""
        over_float = tuple(name for name in passes if name in self._over_float)
        if over_float not in self._variants:
            batches = self.base.batches
            assert batches is not None
            *before, last = over_float
            model = self._over_float[last](self.variants(tuple(before)).model, batches)
            self._variants[over_float] = Variants(model, self._quantizer, batches, self._observer)
        return self._variants[over_float]

    def size(self, passes: tuple[str, ...], choices: Mapping[str, Choice]) -> Size:
        """Size of a variant."""
        key = (passes, tuple(sorted((unit, choice.name) for unit, choice in choices.items())))
        if key not in self._sizes:
            self._sizes[key] = self.variants(passes).decided(choices).size()
        return self._sizes[key]

    def macs(self) -> int:
        """Multiply-adds of the model."""
        return sum(row.macs for row in self.base.decided({}).ledger)

    def prepared(
        self, passes: tuple[str, ...], choices: Mapping[str, Choice], *, progress: bool = False
    ) -> GraphModule:
        """A calibrated variant, after all passes."""
        variants = self.variants(passes)
        prepared = variants.prepared(variants.decided(choices), progress=progress)
        for name in passes:
            if name in self._over_prepared:
                assert variants.batches is not None
                prepared = self._over_prepared[name](prepared, variants.batches)
        return prepared

    def converted(self, passes: tuple[str, ...], choices: Mapping[str, Choice]) -> GraphModule:
        """A Q/DQ variant."""
        return self.base.converted(self.prepared(passes, choices))

    def first_batch(self) -> Any:
        """A batch to run a lowered program with."""
        if self.base.batches is None:
            raise AccuracyError(
                "A latency is measured on a batch.",
                expected="batches of inputs as calibration data",
                got="a Calibration",
            )
        return next(iter(self.base.batches))


def _check_name(name: str, known: Iterable[str]) -> None:
    known = tuple(known)
    if name not in known:
        raise AccuracyError(
            f"There is no recovery pass {name!r}.",
            expected=" | ".join(known),
            got=name,
            remedy=did_you_mean(str(name), known),
        )


_Pass = Callable[[GraphModule, Iterable[Any]], GraphModule]


def _passes() -> tuple[dict[str, _Pass], dict[str, _Pass]]:
    """Name → pass: those over the float model, and those over a calibrated one."""
    return (
        {"equalize": lambda model, _: equalize(model), "smooth": smooth, "split_ranges": split_ranges},
        {"choose_ranges": choose_ranges, "round_weights": round_weights, "correct_biases": correct_biases},
    )


def recovered_model(
    exported: ExportedProgram | GraphModule,
    quantizer: object,
    calibration: Iterable[object] | Calibration,
    names: Sequence[str],
    activation_observer: str | ObserverFactory = "histogram",
) -> GraphModule:
    """Prepare, calibrate and convert a model, with recovery passes where they belong."""
    made = Recovered(exported, quantizer, calibration, activation_observer, names)
    return made.converted(made.names, {})
