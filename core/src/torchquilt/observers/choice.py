"""Choosing an observer: by name, or with a function of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from torchquilt.errors import CalibrationError
from torchquilt.observers.base import Observer
from torchquilt.observers.histogram import EntropyObserver, HistogramObserver, PercentileObserver
from torchquilt.observers.min_max import MinMaxObserver
from torchquilt.observers.moving_average import MovingAverageObserver
from torchquilt.spec.qspec import Granularity, QuantizationSpec

#: Makes the observer of an activation for its spec.
ObserverFactory: TypeAlias = Callable[[QuantizationSpec], Observer]

#: The names of observers; those below take a number behind a colon.
_PLAIN: dict[str, ObserverFactory] = {
    "histogram": HistogramObserver,
    "minmax": MinMaxObserver,
    "entropy": EntropyObserver,
    "percentile": PercentileObserver,
    "moving_average": MovingAverageObserver,
}
#: Names of observers that stand for themselves.
OBSERVER_NAMES = tuple(_PLAIN)
_WITH_NUMBER: dict[str, Callable[[QuantizationSpec, float], Observer]] = {
    "percentile": PercentileObserver,
    "moving_average": MovingAverageObserver,
}
_EXPECTED = (
    "'histogram' | 'minmax' | 'entropy' | 'percentile' | 'percentile:99.99' | 'moving_average' | "
    "'moving_average:0.05'"
)


def observer_factory(choice: str | ObserverFactory) -> ObserverFactory:
    """Factory of the observers for a choice, see :func:`make_observer`.

    Raises:
        CalibrationError: the name or the number behind it is not known.
    """
    if callable(choice):
        return partial(_made_by_user, choice)
    name, colon, number = choice.partition(":") if isinstance(choice, str) else ("", "", "")
    if name not in (_WITH_NUMBER if colon else _PLAIN):
        raise CalibrationError(
            f"There is no observer called {choice!r}.",
            expected=f"{_EXPECTED} | a function from QuantizationSpec to Observer",
            got=choice,
        )
    if not colon:
        return partial(_named, _PLAIN[name])
    try:
        value = float(number)
    except ValueError:
        raise CalibrationError(
            f"What follows the colon in {choice!r} is no number.", expected=_EXPECTED, got=number
        ) from None
    return partial(_named, lambda spec: _WITH_NUMBER[name](spec, value))


def make_observer(choice: str | ObserverFactory, spec: QuantizationSpec) -> Observer:
    """An observer for a spec.

    Args:
        choice: a name, or a function from spec to observer. The names:

            - ``"histogram"``: the range of least squared error, where what is clipped counts more;
            - ``"minmax"``: from the smallest to the largest value;
            - ``"percentile"``, ``"percentile:99.99"``: leaves out a thousandth, or that many, at either end;
            - ``"entropy"``: of least Kullback-Leibler divergence;
            - ``"moving_average"``, ``"moving_average:0.05"``: of each batch's smallest and largest value;
              what comes last counts most.

            Those that read a histogram are per tensor; where a spec has several sets of parameters it is
            min-max for each.
        spec: what the tensor will be.

    Raises:
        CalibrationError: the name is not known, or the function returns something else.
    """
    return observer_factory(choice)(spec)


def _named(make: ObserverFactory, spec: QuantizationSpec) -> Observer:
    if spec.granularity is Granularity.PER_TENSOR:
        return make(spec)
    # Checks what was asked for, also where it is not what will be used.
    found = make(QuantizationSpec(spec.dtype, spec.quant_min, spec.quant_max))
    return MinMaxObserver(spec) if isinstance(found, HistogramObserver) else make(spec)


def _made_by_user(choice: ObserverFactory, spec: QuantizationSpec) -> Observer:
    made = choice(spec)
    if isinstance(made, Observer):
        return made
    raise CalibrationError(
        "The observer factory made no observer.", expected="a torchquilt.observers.Observer", got=made
    )
