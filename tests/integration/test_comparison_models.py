"""Comparisons of whole models: every architecture of the tables, quantized in two ways."""

from __future__ import annotations

import math

import pytest

import torchquilt as tq
from architectures import Architecture, decoders, encoders, mixtures, pairs, vision
from architectures.behaviours import Subject, quantizer
from strategies import Nothing
from unharmed import unharmed

#: Those that `make test` runs; `make test-long` runs all.
_SAMPLE = ("bert, strict",)
_FOLDED = "the BatchNorm behind it is folded into its weights"


def _cases() -> list[object]:
    tables = (vision.TABLE, encoders.TABLE, decoders.TABLE, mixtures.TABLE, pairs.TABLE)
    every: list[Architecture] = [one for table in tables for one in table]
    return [
        pytest.param(one, marks=[] if one.name in _SAMPLE else [pytest.mark.long], id=str(one))
        for one in every
    ]


@pytest.mark.parametrize("architecture", _cases())
def test_every_operator_is_compared_or_named(architecture: Architecture) -> None:
    """Each quantized one has a row or a reason, and each float one computes what it did."""
    subject = Subject.of(architecture)
    for is_dynamic in (False, True):
        prepared = tq.prepare_pt2e(subject.exported, quantizer(is_dynamic=is_dynamic))
        found = tq.convert_pt2e(tq.calibrate(prepared, subject.batches))
        with unharmed(subject.exported, found):
            comparison = tq.compare(subject.exported, found, subject.batches, progress=False)
        rows = {row.node: row for row in comparison.operators}
        named = {one.node for one in comparison.uncompared}
        ledger = tq.ledger_of(found)
        assert [row.node for row in ledger.quantized if row.node not in rows.keys() | named] == []
        floats = [rows[row.node] for row in ledger.left_in_float if row.node in rows]
        changed = [row for row in floats if row.isolated.sqnr < math.inf and not row.tensors]
        assert [str(row) for row in changed if row.reason != _FOLDED or row.isolated.sqnr < 100] == []
        assert [row.node for row in rows.values() if row.isolated.sqnr < math.inf and not row.reason] == []
        assert not any(row.diverged for row in rows.values())


@pytest.mark.parametrize("architecture", _cases())
def test_a_model_in_which_nothing_is_quantized_has_no_error(architecture: Architecture) -> None:
    """But for that of folding a BatchNorm, which is done before anything is quantized."""
    subject = Subject.of(architecture)
    found = tq.convert_pt2e(
        tq.calibrate(tq.prepare_pt2e(subject.exported, Nothing(), strict=False), subject.batches)
    )
    comparison = tq.compare(subject.exported, found, subject.batches, progress=False)
    changed = [row for row in comparison.operators if row.isolated.sqnr < math.inf]
    assert [str(row) for row in changed if row.reason != _FOLDED or row.isolated.sqnr < 100] == []
    if not changed:
        assert {output.error.sqnr for output in comparison.outputs} <= {math.inf}
