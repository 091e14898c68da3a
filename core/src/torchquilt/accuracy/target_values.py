"""The answer of a comparison of targets: a row for each, with what was measured there.

Importing this module does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from torchquilt._internal.json_values import from_document, from_plain, parsed, to_plain
from torchquilt._internal.text_tables import Printed, html_list, html_table
from torchquilt.errors import AccuracyError

if TYPE_CHECKING:
    from torchquilt.lowering import LoweredProgram

#: Version of the JSON that :meth:`TargetComparison.to_json` writes.
JSON_SCHEMA = 1


@attrs.frozen
class TargetFigures:
    """Figures of one model on one target.

    Args:
        target: the runtime.
        quantizer: who quantized the model for it, in words.
        integer_share: share of multiply-adds that the program computes with integers.
        quantized_share: share of multiply-adds that the quantizer decided to quantize.
        sqnr_to_quantized: agreement of the program with its own quantized model on the example inputs, in dB:
            the worst output; ``inf`` where nothing differs.
        sqnr_to_float: likewise, with the float model.
        nbytes: size of the program.
        float_nbytes: size of the same runtime's float program.
        ms: of a run, the median.
        float_ms: likewise, of the float program; None where the runtime does not take the float model.
        integer_kernels: number of operators that compute with integers.
        failed: why there are no figures, empty where there are.
        caution: how the program differs from its quantized model by more than roundings; empty where it does
            not.
    """

    target: str
    quantizer: str
    integer_share: float = 0.0
    quantized_share: float = 0.0
    sqnr_to_quantized: float = float("-inf")
    sqnr_to_float: float = float("-inf")
    nbytes: int = 0
    float_nbytes: int | None = None
    ms: float = 0.0
    float_ms: float | None = None
    integer_kernels: int = 0
    failed: str = ""
    caution: str = ""

    @property
    def speed(self) -> float | None:
        """Time of the program ÷ time of the float program; None where there is no float program."""
        return self.ms / self.float_ms if self.float_ms else None

    def __str__(self) -> str:
        if self.failed:
            return f"{self.target}: {self.failed}"
        return f"{self.target}: {self.integer_share:.1%} in integers, {self.ms:.3f} ms"


@attrs.frozen(eq=False, repr=False)
class TargetComparison:
    """One float model on several targets. Made by :func:`torchquilt.compare_targets`.

    Args:
        rows: in the order in which the targets were given.
        runs: so many runs each time is the median of.
        programs: target → the program, of those that were made; empty where it was read from JSON.
    """

    rows: tuple[TargetFigures, ...]
    runs: int
    programs: Mapping[str, LoweredProgram] = attrs.field(factory=dict)

    def __getitem__(self, target: str) -> TargetFigures:
        """The row of a target.

        Raises:
            AccuracyError: it was not compared.
        """
        for row in self.rows:
            if row.target == target:
                return row
        raise AccuracyError(
            f"The target {target!r} was not compared.",
            expected=f"one of: {', '.join(row.target for row in self.rows)}",
            got=target,
            remedy="compare_targets(exported, {target: quantizer}, …)",
        )

    def to_plain(self) -> dict[str, Any]:
        """The rows as dicts, lists, texts and numbers."""
        return {"schema": JSON_SCHEMA, "rows": [to_plain(row) for row in self.rows], "runs": self.runs}

    def to_json(self) -> str:
        """The rows as JSON text, with a schema version. Infinite numbers are ``Infinity``."""
        return json.dumps(self.to_plain(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> TargetComparison:
        """The inverse of :meth:`to_json`; without the programs.

        Raises:
            AccuracyError: the text is of another schema version, or no comparison of targets.
        """
        what = "a comparison of targets"
        return from_document(parsed(text, what, AccuracyError), JSON_SCHEMA, what, AccuracyError, _read)

    def printed(self) -> Printed:
        """A table with a line for each target, and why there are no figures for one."""
        rows = [_cells(row) for row in self.rows if not row.failed]
        told = [str(row) for row in self.rows if row.failed]
        told += [f"{row.target}: {row.caution}" for row in self.rows if row.caution]
        return Printed((), [_HEADER, *rows] if rows else (), told)

    def __str__(self) -> str:
        return str(self.printed())

    def __repr__(self) -> str:
        return f"<TargetComparison of {', '.join(row.target for row in self.rows)}; print it for the table>"

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        table = self.printed()
        return "\n".join(
            [html_table(_HEADER, table.rows[1:]), html_list("Failures and cautions:", [*table.after])]
        )


_HEADER = (
    "target",
    "quantizer",
    "integer multiply-adds",
    "to its Q/DQ",
    "to float",
    "kB (float)",
    "ms (float)",
    "÷ float",
)


def _cells(row: TargetFigures) -> tuple[str, ...]:
    speed = "–" if row.speed is None else f"{row.speed:.2f}"
    float_kb = "–" if row.float_nbytes is None else f"{row.float_nbytes / 1e3:,.0f}"
    float_ms = "–" if row.float_ms is None else f"{row.float_ms:.3f}"
    return (
        row.target,
        row.quantizer,
        f"{row.integer_share:.1%} of {row.quantized_share:.1%}",
        f"{row.sqnr_to_quantized:.1f} dB",
        f"{row.sqnr_to_float:.1f} dB",
        f"{row.nbytes / 1e3:,.0f} ({float_kb})",
        f"{row.ms:.3f} ({float_ms})",
        speed,
    )


def _read(data: dict[str, Any]) -> TargetComparison:
    rows = tuple(from_plain(TargetFigures, row) for row in data["rows"])
    return TargetComparison(rows, int(data["runs"]))
