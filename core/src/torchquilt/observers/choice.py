"""Choosing an observer: by name, or with a function of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torchquilt.errors import CalibrationError
from torchquilt.observers.base import Observer
from torchquilt.observers.histogram import HistogramObserver
from torchquilt.observers.min_max import MinMaxObserver
from torchquilt.spec import Granularity, QuantizationSpec

#: Makes the observer of an activation for its spec.
ObserverFactory: TypeAlias = Callable[[QuantizationSpec], Observer]


def make_observer(choice: str | ObserverFactory, spec: QuantizationSpec) -> Observer:
    """An observer for a spec.

    Args:
        choice: ``"minmax"``, ``"histogram"`` (per tensor; where a spec has several sets of parameters
            it is min-max for each), or a function from spec to observer.
        spec: what the tensor will be.

    Raises:
        CalibrationError: the name is not known, or the function returns something else.
    """
    if choice == "minmax":
        return MinMaxObserver(spec)
    if choice == "histogram":
        per_tensor = spec.granularity is Granularity.PER_TENSOR
        return HistogramObserver(spec) if per_tensor else MinMaxObserver(spec)
    if callable(choice):
        made = choice(spec)
        if isinstance(made, Observer):
            return made
        raise CalibrationError(
            "The observer factory made no observer.", expected="a torchquilt.observers.Observer", got=made
        )
    raise CalibrationError(
        f"There is no observer called {choice!r}.",
        expected="'minmax' | 'histogram' | a function from QuantizationSpec to Observer",
        got=choice,
    )
