"""The metric by which a model is judged, and whether a value of it is good enough."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from torchquilt.errors import AccuracyError

#: Judges a model, which is called like the float one.
Evaluate = Callable[[Any], float]


def evaluate_on(data: Iterable[tuple[Any, Any]], metric: Callable[[Any, Any], Any]) -> Callable[[Any], float]:
    """Make a function that judges a model by pairs of inputs and targets.

    Args:
        data: pairs ``(inputs, target)``. Inputs are a batch as for :func:`torchquilt.calibrate`: a tuple or
            list of positional inputs, a mapping of keyword inputs, or the only input by itself. It is gone
            through once for each model, so a generator will not do.
        metric: ``metric(outputs, target)``, whose mean over the pairs is returned; or an object of
            ``torchmetrics``, or any with ``reset``, ``update`` and ``compute``, which sees all of them.

    Raises:
        AccuracyError: the data can be read only once.
    """
    if iter(data) is data:
        raise AccuracyError(
            "A search judges many models, so its data is read many times.",
            expected="a list, a DataLoader, or another iterable that can be read again",
            got=type(data).__name__,
            remedy="pass list(data)",
        )
    is_stateful = all(callable(getattr(metric, name, None)) for name in ("reset", "update", "compute"))

    def evaluate(model: Any) -> float:
        import torch

        with torch.no_grad():
            outputs = ((_call(model, inputs), target) for inputs, target in data)
            return _accumulated(metric, outputs) if is_stateful else _mean(metric, outputs)

    return evaluate


def _call(model: Any, inputs: Any) -> Any:
    from torch.fx import GraphModule

    from torchquilt.graph.signature import call_arguments

    if isinstance(model, GraphModule):
        args, kwargs = call_arguments(model, inputs)
        return model(*args, **kwargs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def _accumulated(metric: Any, outputs: Iterable[tuple[Any, Any]]) -> float:
    metric.reset()
    for output, target in outputs:
        metric.update(output, target)
    return float(metric.compute())


def _mean(metric: Callable[[Any, Any], Any], outputs: Iterable[tuple[Any, Any]]) -> float:
    values = [float(metric(output, target)) for output, target in outputs]
    if not values:
        raise AccuracyError(
            "There is no data to judge a model by.", expected="at least one pair (inputs, target)", got="none"
        )
    return math.fsum(values) / len(values)


@attrs.frozen(eq=False)
class Metric:
    """A metric, and its direction.

    Args:
        evaluate: judges a model.
        minimize: whether smaller is better; otherwise larger is.
    """

    evaluate: Evaluate
    minimize: bool = False

    def __call__(self, model: Any, what: str) -> float:
        """The value for a model.

        Args:
            model: the model.
            what: the model in words, for errors.

        Raises:
            AccuracyError: the function failed, or returned no number.
        """
        try:
            value = float(self.evaluate(model))
        except AccuracyError:
            raise
        except Exception as error:
            raise AccuracyError(
                f"The metric failed for {what}.",
                expected="evaluate(model) -> float",
                got=f"{type(error).__name__}: {error}",
                remedy="see the cause above; what was evaluated before is kept where a state file is named",
            ) from error
        if math.isnan(value):
            raise AccuracyError(
                f"The metric of {what} is not a number.",
                expected="a number",
                got=value,
                remedy="let evaluate return a finite value for a model that computes NaN",
            )
        return value

    @property
    def name(self) -> str:
        """Name of the function, by which values of it are told from those of another one."""
        named = self.evaluate if hasattr(self.evaluate, "__qualname__") else type(self.evaluate)
        return f"{named.__module__}:{named.__qualname__}"

    def is_better(self, one: float, other: float) -> bool:
        """Whether one value is better than another."""
        return one < other if self.minimize else one > other

    def drop(self, reference: float, value: float) -> float:
        """By how much a value is worse than a reference; negative where it is better."""
        return value - reference if self.minimize else reference - value


def allowed_drop(max_drop: float | str, reference: float) -> float:
    """A drop in the unit of the metric.

    Args:
        max_drop: in that unit, or ``"1%"`` of the reference.
        reference: the metric of the float model.

    Raises:
        AccuracyError: it is neither, or negative.
    """
    if isinstance(max_drop, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", max_drop)
        if found:
            return abs(reference) * float(found.group(1)) / 100
    elif isinstance(max_drop, (int, float)) and not isinstance(max_drop, bool) and max_drop >= 0:
        return float(max_drop)
    raise AccuracyError(
        "This is no drop of a metric.",
        expected="a number from 0 in the unit of the metric, or a share such as '1%'",
        got=repr(max_drop),
    )
