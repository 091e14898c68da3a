"""The answer of a search. Importing this module does not import torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from torchquilt._internal.json_values import to_plain
from torchquilt._internal.text_tables import Printed, counted, html_list, html_table

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    from torchquilt.observers import ObserverFactory
    from torchquilt.pt2e.calibration.merging import Calibration
    from torchquilt.quantizers.base import Quantizer
    from torchquilt.recipe import Recipe

JSON_SCHEMA = 1
#: What is no figure.
_NOT_PLAIN = ("quantizer", "activation_observer")


@attrs.frozen
class Candidate:
    """One variant of the model that was judged.

    Args:
        metric: its metric.
        bytes: of its parameters, those of 4 bits counted as such.
        macs_float: multiply-adds in float, for the example shapes.
        choices: ``(module, choice)`` of each module that is not as the user's quantizer decides.
        recovery: names of the recovery passes, in order.
        latency_ms: milliseconds for one batch on the target; None where that was not measured.
    """

    metric: float
    bytes: int
    macs_float: int
    choices: tuple[tuple[str, str], ...] = ()
    recovery: tuple[str, ...] = ()
    latency_ms: float | None = None

    def is_covered_by(self, other: Candidate, *, minimize: bool) -> bool:
        """Whether another one is at least as good in all, and better in something."""
        sign = 1 if minimize else -1
        mine = (sign * self.metric, self.bytes, self.macs_float)
        theirs = (sign * other.metric, other.bytes, other.macs_float)
        return mine != theirs and all(b <= a for a, b in zip(mine, theirs, strict=True))


@attrs.frozen(eq=False, repr=False)
class SearchResult:
    """Outcome of a search. Made by :func:`torchquilt.search`.

    Args:
        best: the variant that was chosen.
        is_met: whether it is within all limits; otherwise it is the one with the best metric.
        is_complete: whether the search came to its end, and was not interrupted or out of evaluations.
        frontier: the variants that no other one makes needless, from the fewest multiply-adds in float on.
        float_metric: of the float model.
        given_metric: of the model as the user's quantizer decides.
        macs: multiply-adds of the model.
        evaluations: how many variants were judged.
        quantizer: decides as the best variant; for :func:`torchquilt.prepare_pt2e`.
        minimize: whether a smaller metric is better.
        is_interrupted: whether Ctrl-C ended it.
        activation_observer: that of the search.
    """

    best: Candidate
    is_met: bool
    is_complete: bool
    frontier: tuple[Candidate, ...]
    float_metric: float
    given_metric: float
    macs: int
    evaluations: int
    quantizer: Quantizer
    minimize: bool = False
    is_interrupted: bool = False
    activation_observer: str | ObserverFactory = "histogram"

    @property
    def recipe(self) -> Recipe:
        """The recipe of the best variant, without its recovery passes.

        Raises:
            RecipeError: the user's quantizer has more to it than a recipe can say.
        """
        from torchquilt.recipe import Recipe

        return Recipe.of(self.quantizer)

    def convert(
        self, exported: ExportedProgram | GraphModule, calibration: Iterable[object] | Calibration
    ) -> GraphModule:
        """Prepare, calibrate and convert a model as the best variant, its recovery passes included.

        Args:
            exported: the float model of the search.
            calibration: batches as for :func:`torchquilt.calibrate`.
        """
        from torchquilt.accuracy.recovered import recovered_model

        return recovered_model(
            exported, self.quantizer, calibration, self.best.recovery, self.activation_observer
        )

    @property
    def choices(self) -> Mapping[str, str]:
        """Module → choice, for each module that is not as the user's quantizer decides."""
        return dict(self.best.choices)

    @property
    def integer_share(self) -> float:
        """Share of multiply-adds in integers."""
        return 1 - self.best.macs_float / self.macs if self.macs else 1.0

    def to_plain(self) -> dict[str, Any]:
        """The figures as dicts, lists, texts and numbers."""
        names = [field.name for field in attrs.fields(SearchResult) if field.name not in _NOT_PLAIN]
        return {"schema": JSON_SCHEMA, **{name: to_plain(getattr(self, name)) for name in names}}

    def to_json(self) -> str:
        """The figures as JSON text, with a schema version."""
        return json.dumps(self.to_plain(), indent=1)

    def __repr__(self) -> str:
        return f"<SearchResult: metric {self.best.metric:.6g}; print it for the frontier>"

    def __str__(self) -> str:
        return str(self.printed())

    def printed(self) -> Printed:
        """The best variant, then the frontier."""
        best = self.best
        lines = [
            f"metric {best.metric:.6g} (float {self.float_metric:.6g}, as given {self.given_metric:.6g})",
            f"{self.integer_share:.1%} of multiply-adds are integer, {best.bytes:,} bytes of parameters",
            f"{counted(self.evaluations, 'variant')} judged"
            + ("" if self.is_complete else "; the search did not come to its end"),
        ]
        if not self.is_met:
            lines.append("no variant is within all limits; this one has the best metric")
        if best.recovery:
            lines.append(f"recovery: {', '.join(best.recovery)}")
        lines += [f"  {module}: {choice}" for module, choice in best.choices]
        if len(self.frontier) <= 1:
            return Printed(lines, ())
        return Printed([*lines, "frontier:"], self._cells())

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        header, *rows = self._cells()
        first = str(self).partition("\nfrontier:")[0].split("\n")
        return html_list("Search:", first) + html_table(header, rows)

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            ("metric", "integer multiply-adds", "bytes", "changed modules", "recovery"),
            *(
                (
                    f"{one.metric:.6g}",
                    f"{1 - one.macs_float / self.macs:.1%}" if self.macs else "–",
                    f"{one.bytes:,}",
                    f"{len(one.choices)}",
                    ", ".join(one.recovery) or "–",
                )
                for one in self.frontier
            ),
        ]
