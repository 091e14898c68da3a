"""A row that names a lowering target runs there: optional, tested where a checker for the target is given."""

from __future__ import annotations

from torchquilt.support import SupportRow
from torchquilt.testing.bench import Bench
from torchquilt.testing.conftest import NoteDown
from torchquilt.testing.limits import describe
from torchquilt.testing.plugin import Lowering
from torchquilt.testing.trials import sqnr


def test_a_row_lowers(
    row: SupportRow, target: str, bench: Bench, lowerings: dict[str, Lowering], note: NoteDown
) -> None:
    """The converted model of the row lowers, and the program computes what the converted model does."""
    note(f"lowers:{target}", "")
    for trial in bench.models(row):
        quantized = trial.convert()
        lowered = lowerings[target](quantized, trial.example.fresh_inputs())
        ratio, bound = sqnr(trial.run(quantized), lowered), trial.least_sqnr()
        assert ratio >= bound, (
            f"{describe(trial)}: lowered for {target}, SQNR to the converted model {ratio:.1f} dB"
        )
