"""A backend is one of several: it leaves others what they took, and keeps what it took."""

from __future__ import annotations

import pytest
import torch

from torchquilt.spec.annotation import annotation_of
from torchquilt.support.table import SupportRow
from torchquilt.testing.bench import Bench
from torchquilt.testing.conftest import NoteDown
from torchquilt.testing.limits import describe
from torchquilt.testing.trials import FOREIGN, decisions, foreign

_OWNER = 2  # of an entry of decisions()


@pytest.mark.parametrize("everything", [True, False], ids=["of_everything", "of_one_operator"])
def test_what_a_foreign_quantizer_took_first_stays_its_own(
    row: SupportRow, bench: Bench, note: NoteDown, everything: bool
) -> None:
    """Behind a foreign quantizer the backend takes only what is free, and the result converts and runs."""
    note("composes", "")
    for trial in bench.models(row):
        other = foreign(None if everything else row.pattern.operators[0].overloads)
        alone = decisions(trial.annotate(other))
        together = decisions(trial.annotate(other, trial.quantizer()))
        assert {k: together.get(k) for k in alone} == alone, f"{describe(trial)}: took what was taken"
        assert FOREIGN in [decision[_OWNER] for decision in alone.values()]
        assert torch.isfinite(trial.run(trial.convert(other, trial.quantizer()))).all(), describe(trial)


def test_what_the_backend_took_first_stays_its_own(row: SupportRow, bench: Bench, note: NoteDown) -> None:
    """Before a foreign quantizer the backend takes what it takes alone, and the result converts and runs."""
    note("composes", "")
    for trial in bench.models(row):
        alone = decisions(trial.annotate())
        together = decisions(trial.annotate(trial.quantizer(), foreign()))
        assert {k: together.get(k) for k in alone} == alone, f"{describe(trial)}: did not keep what it took"
        assert torch.isfinite(trial.run(trial.convert(trial.quantizer(), foreign()))).all(), describe(trial)


def test_annotations_are_signed(row: SupportRow, bench: Bench) -> None:
    """Each annotation of the backend says who made it and with which pattern, so that a ledger can."""
    for trial in bench.models(row):
        name = trial.quantizer().name
        found = [annotation_of(node) for node in trial.annotate().graph.nodes]
        mine = [annotation for annotation in found if annotation and annotation.quantizer == name]
        assert mine, describe(trial)
        assert all(annotation.pattern for annotation in mine), describe(trial)
