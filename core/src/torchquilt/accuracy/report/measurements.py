"""Measurements that a report is given, read through their plain forms: a comparison, sensitivities, a search.

A report shows what there is. What a plain form does not have is left out of the page, and so is what this
torchquilt does not know of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from torchquilt.errors import ModelError

#: A page draws so many pairs of a float and a quantized value.
_MOST_SAMPLES = 120
#: Figures of an error, as a comparison has them.
ERRORS = ("sqnr", "cosine", "mean_error", "max_error")
#: Figures of a quantized tensor, likewise.
_TENSOR = ("sqnr", "saturated", "unused", "to_zero", "zeroed_channels")


@attrs.frozen
class Compared:
    """Comparison of one operator with its float counterpart.

    Args:
        isolated, accumulated: figures of either error, by their names in :data:`ERRORS`.
        tensors: figures of its quantized activations by their names, as those of ``output``: ``sqnr``,
            ``saturated``, ``unused``, ``to_zero``, ``zeroed_channels``.
        reason: sentence about what costs its accuracy.
        samples: pairs of a float and a quantized value.
    """

    isolated: Mapping[str, float]
    accumulated: Mapping[str, float]
    tensors: Mapping[str, Mapping[str, float]]
    reason: str
    samples: tuple[tuple[float, float], ...]


@attrs.frozen
class Comparison:
    """A comparison of the whole model: operators and outputs by their names."""

    rows: Mapping[str, Compared]
    outputs: tuple[tuple[str, Mapping[str, float]], ...]
    batches: int | None
    unmatched: tuple[tuple[str, str], ...]


@attrs.frozen
class GroupCost:
    """Cost of quantizing one group of operators.

    Args:
        name: the module that they belong to.
        nodes: their names.
        quantizers: who quantizes them.
        macs: their multiply-adds.
        noise: what quantizing them adds to the outputs, as a ratio of noise to signal.
        alone, left_out: the metric where this group alone is quantized, and where all others are.
    """

    name: str
    nodes: tuple[str, ...]
    quantizers: tuple[str, ...]
    macs: float | None
    noise: float | None
    alone: float | None
    left_out: float | None

    @property
    def sqnr(self) -> float | None:
        """Signal to noise of the outputs, in dB; None where the noise is not known."""
        if self.noise is None:
            return None
        return -10 * math.log10(self.noise) if self.noise > 0 else math.inf


@attrs.frozen
class Sensitivities:
    """Sensitivities of all groups, and the metric of both models where one was evaluated."""

    groups: tuple[GroupCost, ...]
    float_metric: float | None
    quantized_metric: float | None


@attrs.frozen
class Found:
    """One variant that a search judged.

    Args:
        metric, nbytes, macs_float, latency_ms: of it; None where that is not known.
        choices: module and choice, for each that is not as the user's quantizer decides.
        recovery: names of recovery passes.
    """

    metric: float | None
    nbytes: float | None
    macs_float: float | None
    latency_ms: float | None
    choices: tuple[tuple[str, str], ...]
    recovery: tuple[str, ...]


@attrs.frozen
class Search:
    """A search.

    Args:
        frontier: the variants that no other makes needless, and the one that was chosen.
        chosen: the index of that; None where it is not known.
        float_metric, given_metric: of the float model, and of the model as the user's quantizer decides.
        is_met: whether what was chosen is within all limits.
        is_complete: whether the search came to its end.
        evaluations: how many variants were judged.
    """

    frontier: tuple[Found, ...]
    chosen: int | None
    float_metric: float | None
    given_metric: float | None
    is_met: bool
    is_complete: bool
    evaluations: int | None


def comparison_of(value: object) -> Comparison | None:
    """Read a comparison; None where there is none."""
    plain = _plain(value, "compare", "torchquilt.compare")
    if plain is None:
        return None
    rows = _mappings(plain.get("operators"))
    outputs, uncompared = _mappings(plain.get("outputs")), _mappings(plain.get("uncompared"))
    return Comparison(
        {str(row["node"]): _compared(row) for row in rows if "node" in row},
        tuple((str(one.get("name", "output")), _figures(one.get("error"))) for one in outputs),
        _whole(plain.get("batches")),
        tuple((str(one.get("node", "")), str(one.get("reason", ""))) for one in uncompared),
    )


def _compared(row: Mapping[str, Any]) -> Compared:
    pairs = row.get("samples")
    samples = [pair for pair in pairs or () if isinstance(pair, (list, tuple)) and len(pair) == 2]
    numbers = ((number(first), number(second)) for first, second in _spread(samples))
    tensors = _mappings(row.get("tensors"))
    return Compared(
        _figures(row.get("isolated")),
        _figures(row.get("accumulated")),
        {str(one.get("name", "")): _figures(one, _TENSOR) for one in tensors},
        str(row.get("reason") or ""),
        tuple((x, y) for x, y in numbers if x is not None and y is not None and math.isfinite(x + y)),
    )


def _spread(samples: Sequence[Any]) -> Iterable[Any]:
    """At most as many as are drawn, evenly from all."""
    count = len(samples)
    if count <= _MOST_SAMPLES:
        return samples
    return (samples[index * count // _MOST_SAMPLES] for index in range(_MOST_SAMPLES))


def sensitivities_of(value: object) -> Sensitivities | None:
    """Read sensitivities; None where there are none."""
    plain = _plain(value, "sensitivity", "torchquilt.sensitivity")
    if plain is None:
        return None
    groups = tuple(
        GroupCost(
            str(group.get("name", "")),
            _texts(group.get("nodes")),
            _texts(group.get("quantizers")),
            number(group.get("macs")),
            number(group.get("noise")),
            number(group.get("alone")),
            number(group.get("left_out")),
        )
        for group in _mappings(plain.get("groups"))
    )
    return Sensitivities(groups, number(plain.get("float_metric")), number(plain.get("quantized_metric")))


def search_of(value: object) -> Search | None:
    """Read the result of a search; None where there is none."""
    plain = _plain(value, "search", "torchquilt.search")
    if plain is None:
        return None
    frontier = [_found(point) for point in _mappings(plain.get("frontier"))]
    best = plain.get("best")
    chosen = None
    if isinstance(best, Mapping):
        point = _found(best)
        if point not in frontier:
            frontier.append(point)
        chosen = frontier.index(point)
    return Search(
        tuple(frontier),
        chosen,
        number(plain.get("float_metric")),
        number(plain.get("given_metric")),
        plain.get("is_met") is not False,
        plain.get("is_complete") is not False,
        _whole(plain.get("evaluations")),
    )


def _found(point: Mapping[str, Any]) -> Found:
    pairs = point.get("choices")
    choices = [pair for pair in pairs or () if isinstance(pair, (list, tuple)) and len(pair) == 2]
    return Found(
        number(point.get("metric")),
        number(point.get("bytes")),
        number(point.get("macs_float")),
        number(point.get("latency_ms")),
        tuple((str(module), str(choice)) for module, choice in choices),
        _texts(point.get("recovery")),
    )


def number(value: Any) -> float | None:
    """A number, infinite or not; None for anything else, NaN among it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        return None
    return float(value)


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, (list, tuple)) else ()


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _figures(value: Any, names: tuple[str, ...] = ERRORS) -> dict[str, float]:
    """The figures that are there."""
    if not isinstance(value, Mapping):
        return {}
    pairs = ((name, number(value.get(name))) for name in names)
    return {name: found for name, found in pairs if found is not None}


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    items = value if isinstance(value, (list, tuple)) else ()
    return [item for item in items if isinstance(item, Mapping)]


def _plain(value: object, argument: str, maker: str) -> Mapping[str, Any] | None:
    if value is None:
        return None
    plain = value.to_plain() if hasattr(value, "to_plain") else value
    if not isinstance(plain, Mapping):
        raise ModelError(
            f"A report cannot read this {argument}.",
            expected=f"{argument}=what {maker} returned, or its to_plain()",
            got=f"{type(value).__module__}.{type(value).__qualname__}",
            remedy="leave it out: its section then says how to get it",
        )
    return plain
