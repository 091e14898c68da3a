"""How the range of a tensor is found: observers as values, apart from the specs that they serve.

An observer is fed with tensors (``update``), can be merged with one that saw other data (``merge``),
and answers with the parameters for a spec (``qparams``). What it keeps does not depend on the order in
which data came, so any split of the data over any number of observers ends in the same state.
"""

from torchquilt.observers.base import Observer
from torchquilt.observers.choice import ObserverFactory, make_observer
from torchquilt.observers.histogram import HistogramObserver
from torchquilt.observers.min_max import MinMaxObserver
from torchquilt.observers.qparams import QParams, qparams_of_range

__all__ = [
    "HistogramObserver",
    "MinMaxObserver",
    "Observer",
    "ObserverFactory",
    "QParams",
    "make_observer",
    "qparams_of_range",
]
