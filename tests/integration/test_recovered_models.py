"""Whole models behind the recovery passes: equal in float, and they run on XNNPACK."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import torchquilt as tq
from architectures import Architecture, decoders, encoders, mixtures, pairs, vision
from architectures.behaviours import measure, quantizer, results
from small_models import SMALL_MODELS
from strategies import export, sqnr
from torchquilt import recovery
from torchquilt.graph.invariants import checking_invariants
from unharmed import Record

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

ARCHITECTURES = {
    architecture.name: architecture
    for table in (vision.TABLE, encoders.TABLE, decoders.TABLE, mixtures.TABLE, pairs.TABLE)
    for architecture in table[::6]
}


def recovered(exported: Any, batches: Any) -> Any:
    """All passes over the float model, under the invariants. The strength is given, so that it is used."""
    with checking_invariants():
        split = recovery.split_ranges(exported, batches)
        return recovery.smooth(recovery.equalize(split), batches, alpha=0.5)


@pytest.mark.parametrize("subject", SMALL_MODELS, ids=lambda subject: subject.name)
def test_a_small_model_is_equal_and_runs(subject: Any) -> None:
    """The program that is lowered computes what the converted model does."""
    torch.manual_seed(0)
    model, batches = subject.module(), [subject.batch(seed) for seed in range(2)]
    exported = export(model, *batches[0])
    found = recovered(exported, batches)
    with torch.no_grad():
        expected, outputs = (pytree.tree_leaves(m(*batches[1])) for m in (exported.module(), found))
    assert min(sqnr(one, other) for one, other in zip(expected, outputs, strict=True)) > 90
    calibrated = tq.calibrate(tq.prepare_pt2e(found, quantizer(is_dynamic=False), strict=False), batches)
    converted = tq.convert_pt2e(recovery.correct_biases(calibrated, batches))
    assert [step.name for step in recovery.steps_of(converted)] == [
        "split_ranges", "equalize", "smooth", "correct_biases",
    ]  # fmt: skip
    tq.lower(converted, batches[0], verify=True)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_equal_and_converts(name: str) -> None:
    """In float it is equal up to rounding, with the same signature, and the program is left alone."""
    architecture: Architecture = ARCHITECTURES[name]
    batches = [architecture.inputs(seed) for seed in range(2)]
    exported = torch.export.export(
        architecture.model(), (), batches[0], strict=architecture.strict,
        dynamic_shapes=architecture.dynamic_shapes(),
    )  # fmt: skip
    before = Record(exported)
    found = recovered(exported, batches)
    before.compare(Record(exported))
    shown = [architecture.smaller(batches[1])] if architecture.free else batches
    assert min(measure(results(exported.module(), shown), results(found, shown))) > 90
    calibrated = tq.calibrate(tq.prepare_pt2e(found, quantizer(is_dynamic=False)), batches)
    tq.convert_pt2e(recovery.correct_biases(calibrated, batches))
