"""The forms in which the delegate takes what is claimed: nobody decides beforehand where none is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import torchquilt as tq
from strategies import Fn, export, normal
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config, quantizer
from torchquilt_xnnpack.forms import _FORMS
from torchquilt_xnnpack.support import SUPPORT

STATIC = get_symmetric_quantization_config(is_per_channel=True)
IMAGE, ROWS = normal(1, 4, 6, 6), normal(2, 6)


def conv() -> nn.Module:
    """A layer that is claimed."""
    return nn.Conv2d(4, 4, 1)


def with_bias(bias: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor] = lambda b: b) -> nn.Module:
    """Two linears that add one bias, as it is stored or changed."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = functional.linear(x, m.first.weight, change(m.bias))
        return functional.linear(x, m.second.weight, None)

    return Fn(run, first=nn.Linear(6, 6), second=nn.Linear(6, 6), bias=nn.Parameter(bias))


def sharing_a_bias() -> nn.Module:
    """Two linears that add the same one."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].bias = model[0].bias
    return model


#: Models in which something has to be written in another form, and models in which nothing has.
WRITTEN: dict[str, tuple[nn.Module, torch.Tensor]] = {
    "mean": (Fn(lambda m, x: m.conv(x).mean((2, 3)), conv=conv()), IMAGE),
    "clamp": (Fn(lambda m, x: m.conv(x).clamp(-1.0, 1.0), conv=conv()), IMAGE),
    "pad": (Fn(lambda m, x: functional.pad(m.conv(x), (1, 1)) * 2, conv=conv()), IMAGE),
    "pad in float": (Fn(lambda m, x: functional.pad(torch.tanh(m.conv(x)), (1, 1)), conv=conv()), IMAGE),
    "bias that two share": (sharing_a_bias(), ROWS),
    "bias that is computed": (with_bias(normal(6), lambda b: b * 2), ROWS),
    "bias of one number": (with_bias(normal(1)), ROWS),
}
AS_IT_IS: dict[str, tuple[nn.Module, torch.Tensor]] = {
    "convolutions": (nn.Sequential(conv(), nn.ReLU(), conv(), nn.MaxPool2d(2)), IMAGE),
    "linears": (nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6, bias=False)), ROWS),
}


def decisions(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Is added to whenever all claims of a graph are decided: whether wherever something is passed on."""
    made: list[bool] = []
    claims = XNNPACKQuantizer.claims

    def counted(self: XNNPACKQuantizer, model: Any, *, wherever_passed_on: bool = False) -> Any:
        made.append(wherever_passed_on)
        return claims(self, model, wherever_passed_on=wherever_passed_on)

    monkeypatch.setattr(XNNPACKQuantizer, "claims", counted)
    return made


def graph_of(model: nn.Module, x: torch.Tensor) -> str:
    """The graph of a model that was prepared, as text."""
    prepared = tq.prepare_pt2e(export(model, x), XNNPACKQuantizer().set_global(STATIC))
    return str(prepared.graph)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_has_another_form_is_written(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is claimed is decided before, and the graph is another one than that of the model."""
    made = decisions(monkeypatch)
    found = graph_of(*WRITTEN[name])
    assert made[:2] == [False, True]
    monkeypatch.setattr(quantizer, "write_claims", lambda model, claims: None)
    assert graph_of(*WRITTEN[name]) != found


@pytest.mark.parametrize("name", AS_IT_IS)
def test_where_nothing_has_another_form_claims_are_decided_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When they are annotated. To decide them before would change nothing."""
    made = decisions(monkeypatch)
    found = graph_of(*AS_IT_IS[name])
    assert made == [False]
    monkeypatch.setattr(quantizer, "may_need_other_forms", lambda model, table: True)
    assert graph_of(*AS_IT_IS[name]) == found
    assert made == [False, False, True, False]


def test_each_form_is_that_of_an_operator_of_the_table() -> None:
    """The name of one that is not would never be looked up."""
    names = {operator.name for row in SUPPORT.rows for operator in row.pattern.operators}
    assert _FORMS.keys() <= names
