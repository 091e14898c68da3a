"""Regions of no_grad and autocast train, as they are run; what control flow traces is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import torchquilt as tq
from strategies import normal


class TwoLinears(nn.Module):
    """Two linears, the first one in a region."""

    def __init__(self, region: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer, self.region = nn.Linear(8, 8), nn.Linear(8, 2), region

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two scores."""
        return self.outer(self.region(self.inner, x))


def without_gradients(inner: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A region of no_grad."""
    with torch.no_grad():
        return inner(x)


def in_full_precision(inner: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A region in which autocast is switched off."""
    with torch.autocast("cpu", enabled=False):
        return inner(x)


def in_branch(inner: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A branch of cond."""
    return torch.cond(x.sum() > 0, lambda x: inner(x), lambda x: x.sin(), (x,))


def quantizer() -> tq.Quantizer:
    """Static, int8."""
    return tq.quantizer("xnnpack", preset="static_int8_per_channel")


def exported(region: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> torch.export.ExportedProgram:
    """The model with a region, in training mode."""
    return torch.export.export(TwoLinears(region).train(), (normal(4, 8),))


@pytest.mark.parametrize(("region", "has_gradient"), [(without_gradients, False), (in_full_precision, True)])
def test_a_region_trains(
    region: Callable[[nn.Module, torch.Tensor], torch.Tensor], has_gradient: bool
) -> None:
    """It is quantized, gets the gradients that it gets in float, and converts to what it computes."""
    model = tq.prepare_qat_pt2e(exported(region), quantizer())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model(normal(4, 8)).sum().backward()
    optimizer.step()
    assert (model.inner.weight.grad is not None) is has_gradient
    assert model.outer.weight.grad is not None
    model.eval()
    converted = tq.convert_pt2e(model)
    assert torch.equal(model(normal(4, 8)), converted(normal(4, 8)))
    assert all(row.is_quantized for row in tq.ledger_of(converted) if "linear" in row.op)


def test_a_quantized_branch_is_refused() -> None:
    """The error names the operator and the subgraph; left in float, the rest trains."""
    with pytest.raises(tq.ModelError, match="in a subgraph of cond") as caught:
        tq.prepare_qat_pt2e(exported(in_branch), quantizer())
    assert caught.value.node == "true_graph_0"
    rest = quantizer().set_module_name("inner", None)
    model = tq.prepare_qat_pt2e(exported(in_branch), rest)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model(normal(4, 8)).sum().backward()
    optimizer.step()
    model.eval()
    assert torch.equal(model(normal(4, 8)), tq.convert_pt2e(model)(normal(4, 8)))
