"""The answer of a sensitivity analysis. Importing this module does not import torch."""

from __future__ import annotations

import json
import math
from typing import Any

import attrs

from torchquilt._internal.json_values import from_document, from_plain, parsed, to_plain
from torchquilt._internal.text_tables import Printed, counted, html_table
from torchquilt.errors import AccuracyError

JSON_SCHEMA = 1
_PRINTED = 20


@attrs.frozen
class GroupSensitivity:
    """Cost of quantizing one group of operators.

    Args:
        name: the module that they belong to.
        nodes: the operators, as the ledger names them.
        quantizers: who quantizes them.
        macs: their multiply-adds.
        noise: what quantizing them adds to the outputs, as an estimated ratio of noise to signal.
        alone: the metric where this group alone is quantized; None without ``evaluate``.
        left_out: the metric where all others are; likewise.
    """

    name: str
    nodes: tuple[str, ...]
    quantizers: tuple[str, ...]
    macs: int
    noise: float
    alone: float | None = None
    left_out: float | None = None

    @property
    def sqnr(self) -> float:
        """The estimated signal to noise of the outputs where this group alone is quantized, in dB."""
        return -10 * math.log10(self.noise) if self.noise > 0 else math.inf


@attrs.frozen(repr=False)
class Sensitivity:
    """Cost of each group of operators. Made by :func:`torchquilt.sensitivity`.

    Args:
        groups: the most costly first: by the metric where it is left out, or else by estimated noise.
        is_weighted: whether noise was weighted with the gradient of the outputs; it is not where the model
            has subgraphs of control flow, and then it is that of each tensor by itself.
        float_metric: of the float model; None without ``evaluate``.
        quantized_metric: of the model as the quantizer decides; likewise.
        minimize: whether a smaller metric is better.
    """

    groups: tuple[GroupSensitivity, ...]
    is_weighted: bool = True
    float_metric: float | None = None
    quantized_metric: float | None = None
    minimize: bool = False

    def __getitem__(self, name: str) -> GroupSensitivity:
        """The row of a group, by its name.

        Raises:
            AccuracyError: there is no such group.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise AccuracyError(
            f"No group is called {name!r}.",
            expected="a module with quantized operators",
            got=name,
            remedy="sensitivity.groups has all of them",
        )

    def to_plain(self) -> dict[str, Any]:
        """The same as dicts, lists, texts and numbers."""
        return {"schema": JSON_SCHEMA, **to_plain(self)}

    def to_json(self) -> str:
        """The same as JSON text, with a schema version."""
        return json.dumps(self.to_plain(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """The inverse of :meth:`to_json`.

        Raises:
            AccuracyError: the text is of another schema version, or something else.
        """
        data = parsed(text, "a sensitivity", AccuracyError)

        def read(found: dict[str, Any]) -> Sensitivity:
            return from_plain(Sensitivity, found)

        return from_document(data, JSON_SCHEMA, "a sensitivity", AccuracyError, read)

    def __repr__(self) -> str:
        return f"<Sensitivity of {counted(len(self.groups), 'group')}; print it for the most costly>"

    def __str__(self) -> str:
        return str(self.printed())

    def printed(self, most: int = _PRINTED) -> Printed:
        """The metrics, then the groups that cost most.

        Args:
            most: so many groups.
        """
        before, more = [], len(self.groups) - most
        if self.float_metric is not None and self.quantized_metric is not None:
            before.append(f"metric: {self.float_metric:.6g} in float, {self.quantized_metric:.6g} quantized")
        after = [f"… and {counted(more, 'more group')}"] if more > 0 else []
        return Printed(before, self._cells(most), after)

    def _repr_html_(self) -> str:
        """The same for a notebook, with all groups."""
        header, *rows = self._cells(len(self.groups))
        return html_table(header, rows)

    def _cells(self, most: int) -> list[tuple[str, ...]]:
        exact = self.float_metric is not None
        noise = "estimated dB" if self.is_weighted else "its own dB"
        more = ("alone", "left in float") if exact else ()
        return [
            ("group", noise, *more, "multiply-adds", "quantizer"),
            *(
                (
                    group.name,
                    f"{group.sqnr:.1f}",
                    *((_number(group.alone), _number(group.left_out)) if exact else ()),
                    f"{group.macs:,}",
                    ", ".join(group.quantizers),
                )
                for group in self.groups[:most]
            ),
        ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"
