"""Search on a recurrent cell over a hundred steps, whose input has heavy tails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import torchquilt as tq
from strategies import export, normal, sqnr
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

_BEST = 200.0


class Cell(nn.Module):
    """An LSTM cell that is stepped over a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.of_input, self.of_state = nn.Linear(16, 128), nn.Linear(32, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The last state."""
        hidden = cell = x.new_zeros(x.shape[0], 32)
        for step in range(x.shape[1]):
            into, forget, new, out = (self.of_input(x[:, step]) + self.of_state(hidden)).chunk(4, -1)
            cell = forget.sigmoid() * cell + into.sigmoid() * new.tanh()
            hidden = out.sigmoid() * cell.tanh()
        return hidden


def test_fifteen_decibels_come_back_with_all_multiply_adds_in_integers() -> None:
    """Static int8 has 21.6 dB; of the two layers it is that of the input which needs ranges of its own."""
    torch.manual_seed(0)
    batches = [normal(4, 100, 16, seed=seed).mul(2).exp() for seed in range(4)]
    exported = export(Cell(), batches[0])
    model = exported.module()
    with torch.no_grad():
        reference = torch.cat([model(batch) for batch in batches])

    def evaluate(quantized: Any) -> float:
        with torch.no_grad():
            return min(_BEST, sqnr(reference, torch.cat([quantized(batch) for batch in batches])))

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    found = tq.search(exported, quantizer, batches, evaluate, max_drop=_BEST - 37, progress=False)
    assert found.given_metric < 22
    assert found.is_met
    assert found.best.metric >= found.given_metric + 15
    assert found.integer_share == 1
    assert set(found.choices) == {"of_input"}
