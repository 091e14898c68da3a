"""Operators between two static layers run as the ledger says, and compute what the quantized model does."""

from __future__ import annotations

import pytest

from torchquilt.testing.between import Operators, batches, differences, static_config
from torchquilt.testing.subject import Subject
from torchquilt.testing.targets import installed_lowerings


@pytest.mark.parametrize("operators", batches(16), ids=lambda operators: operators.labels[0])
def test_operators_between_layers_run_as_the_ledger_says(operators: Operators, subject: Subject) -> None:
    """Operators in float run in float, quantized ones as integers, and both are right."""
    targets = installed_lowerings(subject)
    if not targets or static_config(subject.table) is None:
        pytest.skip("there is no installed target, or no static linear, to try operators between layers with")
    found = [text for target in targets for text in differences(subject, target, operators)]
    assert not found, "\n".join(found)
