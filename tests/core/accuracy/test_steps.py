"""The record of recovery passes: kept with the model, through the whole flow, and readable."""

from __future__ import annotations

import pytest
import torch

import torchquilt as tq
from strategies import export, normal, outputs_of
from torchquilt.accuracy.recovery.steps import note_step

STEP = tq.recovery.RecoveryStep(
    "equalize",
    ["conv2d"],
    [("conv2d_1", "a residual is added to it")],
    [tq.recovery.Gain("conv2d", "largest ÷ smallest channel", 1000.0, 1.0)],
)


def test_a_model_has_no_steps_at_first() -> None:
    """A model out of export has none."""
    assert tq.recovery.steps_of(export(torch.nn.Linear(4, 4), normal(2, 4)).module()) == ()


def test_steps_are_there_after_convert() -> None:
    """Preparing and converting keep the steps, in order, each a frozen value."""
    model = export(torch.nn.Linear(4, 4), normal(2, 4)).module()
    other = tq.recovery.RecoveryStep("smooth", ())
    note_step(model, STEP)
    note_step(model, other)
    prepared = tq.calibrate(tq.prepare_pt2e(model, outputs_of("linear")), [(normal(2, 4),)])
    assert tq.recovery.steps_of(prepared) == (STEP, other)
    assert tq.recovery.steps_of(tq.convert_pt2e(prepared)) == (STEP, other)


def test_a_step_prints_its_gains_and_reasons() -> None:
    """Each node has a line, with what was gained or why it was left alone."""
    head, _, _, applied, left = str(STEP).splitlines()
    assert head == "equalize: applied to 1 node, 1 left alone"
    assert applied.split("  ")[-1] == "largest ÷ smallest channel: 1e+03 → 1"
    assert left.endswith("a residual is added to it")


def test_only_a_graph_module_has_steps() -> None:
    """Any other model is refused, and the error says what would have been taken."""
    with pytest.raises(tq.ModelError) as caught:
        tq.recovery.steps_of(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    assert "Linear" in str(caught.value.got)
