"""Results of the demo: the table, the checks that decide its exit status, and both as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from variants import Coverage, Seconds

WIDTH = 120
"""Fixed, so that the table is the same in a terminal, in a pipe and in the README."""
COLUMNS = (
    "model",
    "saved MB",
    "Pearson",
    "mean cosine",
    "neighbours kept",
    "prepare s",
    "calibrate s",
    "convert s",
)

PROGRAM_COLUMNS = ("program", "MB", "mean cosine", "integer operators", "ms a batch", "times as fast")

MODEL_LEGEND = """\
  saved MB         size of the file, 10**6 bytes
  Pearson          agreement of the similarities of texts with those that people gave: higher is better
  mean cosine      of each embedding with that of the float model: 1 is the same
  neighbours kept  how often the text that is nearest in float is still nearest
  … s              seconds that the step took"""
PROGRAM_LEGEND = """\
  integer operators  operators that are computed with integers
  ms a batch         median over turns in which both programs run; it depends on the machine
  times as fast      as the float program"""

SIZE_RATIO = 1 / 3
"""int8 is a quarter of float32; the rest is room for scales, biases, layer norms and the graph itself."""
PROGRAM_SIZE_RATIO = 0.3
"""The same for programs of ExecuTorch, which have no graph to speak of."""
PEARSON_DROP = 0.01
"""Over 1,225 pairs a correlation of 0.65 has a standard error of about 0.016; less than that is no loss."""
MEAN_COSINE = 0.99
"""Measured is 0.9987, and 0.994 if inputs are quantized a tensor at a time, not a token; below is a fault."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    megabytes: float
    pearson: float | None
    mean_cosine: float
    neighbours_kept: float
    coverage: Coverage
    seconds: Seconds | None = None


@dataclass(frozen=True)
class ProgramRow:
    """One line of the table of programs.

    Args:
        name: of the model.
        megabytes: of the file, 10**6 bytes.
        mean_cosine: of its embeddings with those of the float model.
        integers: how many operators are computed with integers.
        milliseconds: for a batch.
    """

    name: str
    megabytes: float
    mean_cosine: float
    integers: int
    milliseconds: float


@dataclass(frozen=True)
class Check:
    """One thing that has to hold, with what was found."""

    name: str
    expected: str
    got: str
    passed: bool

    def __str__(self) -> str:
        if self.passed:
            return f"ok    {self.name}: {self.got} (needed: {self.expected})"
        return f"FAIL  {self.name}: expected {self.expected}, got {self.got}"


def check_row(row: Row, reference: Row) -> tuple[Check, ...]:
    """Check what the composed model has to reach, against the float one."""
    limit = reference.megabytes * SIZE_RATIO
    checks = [
        Check("coverage", "all linears and embeddings", str(row.coverage), row.coverage.is_complete),
        Check(
            "size of the saved file",
            f"at most {limit:.2f} MB, a third of the float one",
            f"{row.megabytes:.2f} MB",
            row.megabytes <= limit,
        ),
        Check(
            "mean cosine with float",
            f"at least {MEAN_COSINE}",
            f"{row.mean_cosine:.4f}",
            row.mean_cosine >= MEAN_COSINE,
        ),
    ]
    if row.pearson is not None and reference.pearson is not None:
        least = reference.pearson - PEARSON_DROP
        checks.append(
            Check(
                "Pearson with the human ratings",
                f"at least {least:.4f}, {PEARSON_DROP} below float",
                f"{row.pearson:.4f}",
                row.pearson >= least,
            )
        )
    return tuple(checks)


def check_same_bits(name: str, outputs: list[Tensor], expected: list[Tensor]) -> Check:
    """Whether the same tensors came out, each value equal to the last bit."""
    total = sum(tensor.numel() for tensor in expected)
    same_shapes = [tensor.shape for tensor in outputs] == [tensor.shape for tensor in expected]
    if not same_shapes:
        return Check(name, f"{total:,} equal values", "outputs of other shapes", passed=False)
    equal = sum(int((a == b).sum()) for a, b in zip(outputs, expected, strict=True))
    return Check(name, f"{total:,} values equal to the last bit", f"{equal:,} equal", passed=equal == total)


def check_programs(reference: ProgramRow, composed: ProgramRow) -> tuple[Check, ...]:
    """Check what the composed program has to reach, against the float one."""
    limit = reference.megabytes * PROGRAM_SIZE_RATIO
    return (
        Check(
            "size of the program",
            f"at most {limit:.2f} MB, {PROGRAM_SIZE_RATIO} of the float one",
            f"{composed.megabytes:.2f} MB",
            composed.megabytes <= limit,
        ),
        Check(
            "mean cosine of the program with float",
            f"at least {MEAN_COSINE}",
            f"{composed.mean_cosine:.4f}",
            composed.mean_cosine >= MEAN_COSINE,
        ),
    )


def check_target(target: str, failed: str, sqnr: float) -> Check:
    """Check that a runtime computes what its quantized model does, but for roundings."""
    expected = "the program agrees with its quantized model, but for roundings"
    return Check(f"on {target}", expected, failed or f"it does, {sqnr:.1f} dB", not failed)


def print_table(rows: tuple[Row, ...]) -> None:
    """Print the table of the models."""
    _print(COLUMNS, map(_cells, rows))


def print_programs(rows: tuple[ProgramRow, ...]) -> None:
    """Print the table of the programs; the first is what the others' speed is compared with."""
    _print(PROGRAM_COLUMNS, (_program_cells(row, rows[0]) for row in rows))


def _print(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print a table in the form that Markdown reads too."""
    table = Table(box=box.MARKDOWN)
    for title in columns:
        table.add_column(title, justify="left" if title == columns[0] else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(width=WIDTH, no_color=True)
    with console.capture() as captured:
        console.print(table)
    # This box has an empty line for each edge.
    print(captured.get().strip())


def _program_cells(row: ProgramRow, reference: ProgramRow) -> tuple[str, ...]:
    return (
        f"{row.name}.pte",
        f"{row.megabytes:.2f}",
        f"{row.mean_cosine:.4f}",
        str(row.integers),
        f"{row.milliseconds:.1f}",
        f"{reference.milliseconds / row.milliseconds:.2f}",
    )


def _cells(row: Row) -> tuple[str, ...]:
    seconds = row.seconds
    times = (seconds.prepare, seconds.calibrate, seconds.convert) if seconds else (None, None, None)
    return (
        row.name,
        f"{row.megabytes:.2f}",
        "–" if row.pearson is None else f"{row.pearson:.4f}",
        f"{row.mean_cosine:.4f}",
        f"{row.neighbours_kept:.0%}",
        *("–" if time is None else f"{time:.2f}" for time in times),
    )


def write_json(
    path: Path,
    rows: tuple[Row, ...],
    checks: tuple[Check, ...],
    programs: tuple[ProgramRow, ...],
    about: dict[str, str],
) -> None:
    """Write all figures unrounded: ``about``, ``rows``, ``programs`` and ``checks`` under these keys."""
    figures = {
        "about": about,
        "rows": [asdict(row) for row in rows],
        "programs": [asdict(row) for row in programs],
        "checks": [asdict(check) for check in checks],
    }
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
