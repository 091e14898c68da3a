"""Observers: find the range of a tensor. They are values, apart from the specs that they serve.

An observer is fed with tensors (``update``), can be merged with one that saw other data (``merge``),
and answers with the parameters for a spec (``qparams``). What it keeps does not depend on the order in
which data came, so any split of the data over any number of observers ends in the same state. The moving
average is the exception, and says so: it cannot be merged.

The files, in the order of their imports: ``qparams`` (from a range to parameters), ``extremes`` (smallest,
largest, and what is no data), ``base`` (what every observer does), ``subset`` (which values of a large tensor
are read), ``bins`` (what was counted), ``search`` (a range for it), then the observers, and ``choice``.
"""

from torchquilt.observers.base import Observer
from torchquilt.observers.choice import ObserverFactory, make_observer, observer_factory
from torchquilt.observers.histogram import (
    EntropyObserver,
    HistogramObserver,
    PercentileObserver,
    qparams_together,
)
from torchquilt.observers.min_max import MinMaxObserver
from torchquilt.observers.moving_average import MovingAverageObserver
from torchquilt.observers.qparams import QParams, qparams_of_range

__all__ = [
    "EntropyObserver",
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageObserver",
    "Observer",
    "ObserverFactory",
    "PercentileObserver",
    "QParams",
    "make_observer",
    "observer_factory",
    "qparams_of_range",
    "qparams_together",
]
