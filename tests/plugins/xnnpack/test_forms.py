"""The forms in which the delegate takes what is claimed; what is not claimed keeps its own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional

import torchquilt as tq
from strategies import Fn, RandomModel, export, normal, random_models
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config
from torchquilt_xnnpack.support import SUPPORT

STATIC = get_symmetric_quantization_config(is_per_channel=True)
IMAGE, ROWS = normal(1, 4, 6, 6), normal(2, 6)


def conv() -> nn.Module:
    """A layer that is claimed."""
    return nn.Conv2d(4, 4, 1)


def with_bias(bias: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor] = lambda b: b) -> nn.Module:
    """A linear with this bias, as it is stored or changed, and one without."""

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
    "bias that two share": (sharing_a_bias(), ROWS),
    "bias that is computed": (with_bias(normal(6), lambda b: b * 2), ROWS),
    "bias of one number": (with_bias(normal(1)), ROWS),
}
AS_IT_IS: dict[str, tuple[nn.Module, torch.Tensor]] = {
    "pad in float": (Fn(lambda m, x: functional.pad(torch.tanh(m.conv(x)), (1, 1)), conv=conv()), IMAGE),
    "convolutions": (nn.Sequential(conv(), nn.ReLU(), conv(), nn.MaxPool2d(2)), IMAGE),
    "linears": (nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6, bias=False)), ROWS),
}


def slope(m: Any, x: torch.Tensor) -> torch.Tensor:
    """A linear that makes a number of a vector."""
    return functional.linear(x, m.weight, m.bias)


#: Operators with a bias that cannot be claimed, or with dynamic channels.
ODD: dict[str, tuple[nn.Module, torch.Tensor, Any]] = {
    "unbatched, of any length": (nn.Conv1d(4, 4, 1), normal(4, 4), ({1: torch.export.Dim("length")},)),
    "a number": (
        Fn(slope, weight=nn.Parameter(normal(6)), bias=nn.Parameter(torch.tensor(0.5))),
        normal(6),
        None,
    ),
}


def graph_of(model: nn.Module, x: torch.Tensor, quantizer: XNNPACKQuantizer) -> str:
    """The graph of a model that was prepared, as text."""
    return str(tq.prepare_pt2e(export(model, x), quantizer.set_global(STATIC), strict=False).graph)


class AsItStands(XNNPACKQuantizer):
    """The same quantizer, whose rows want no other form."""

    TABLE = attrs.evolve(SUPPORT, rows=tuple(attrs.evolve(row, rewrite=()) for row in SUPPORT.rows))


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_claimed_is_written_in_the_form_of_its_row(name: str) -> None:
    """The graph is another one than without the rewrites of the table."""
    assert graph_of(*WRITTEN[name], XNNPACKQuantizer()) != graph_of(*WRITTEN[name], AsItStands())


@pytest.mark.parametrize("name", AS_IT_IS)
def test_what_has_the_form_already_stays_as_it_is(name: str) -> None:
    """And what is not claimed stays as well, in whatever form it is."""
    assert graph_of(*AS_IT_IS[name], XNNPACKQuantizer()) == graph_of(*AS_IT_IS[name], AsItStands())


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("name", ODD)
def test_what_is_not_known_of_a_bias_stays_not_known(name: str, asked: bool) -> None:
    """Nothing fails, and a size of the exported program that can be anything is not taken for a number."""
    layer, x, shapes = ODD[name]
    inner = nn.Sequential(OrderedDict(odd=layer)).eval()
    program = torch.export.export(inner, (x,), dynamic_shapes=shapes)
    sizes = [str(node.meta["val"].shape) for node in program.graph.find_nodes(op="placeholder")]
    asks = XNNPACKQuantizer()
    asks = asks.set_global(STATIC) if asked else asks.set_module_name("odd", None)
    tq.prepare_pt2e(program, asks, strict=False)
    after = [str(node.meta["val"].shape) for node in program.graph.find_nodes(op="placeholder")]
    assert after == sizes


@pytest.mark.parametrize("is_dynamic", [True, False])
@pytest.mark.parametrize("bias", [None, 0.5])
def test_a_linear_whose_weight_is_a_vector_is_refused(bias: float | None, is_dynamic: bool) -> None:
    """The delegate does not run it, with integers or in float."""
    added = None if bias is None else nn.Parameter(torch.tensor(bias))
    model = nn.Sequential(nn.Linear(6, 6), Fn(slope, weight=nn.Parameter(normal(6)), bias=added))
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    x = ROWS if bias is None else ROWS[0]  # torch adds a bias to one product alone
    ledger = tq.explain(export(model, x), XNNPACKQuantizer().set_global(config))
    # One row times a vector is a single number, which no row takes.
    code = "constraint:matrix" if bias is None else "constraint:dimensions"
    assert [[reason.code for reason in row.reasons] for row in ledger.rows] == [[], [code]]


@settings(max_examples=30)
@given(random_models())
def test_what_is_not_claimed_is_not_written_in_another_form(model: RandomModel) -> None:
    """An operator that stays in float is the one that the model had, in every model."""
    ledger = tq.explain(export(model, model.example), XNNPACKQuantizer().set_global(STATIC), strict=False)
    assert [row for row in ledger.rows if row.quantizer is None and row.written_as] == []


def test_a_pad_that_nobody_asks_for_is_left_alone() -> None:
    """Lowering settles what the delegate would make of it."""
    model = Fn(lambda m, x: functional.pad(m.conv(x), (1, 1)), conv=conv())
    asked = XNNPACKQuantizer().set_module_name("conv", STATIC)
    (before,) = (n for n in export(model, IMAGE).graph.nodes if "pad" in str(n.target))
    (after,) = (n for n in tq.prepare_pt2e(export(model, IMAGE), asked).graph.nodes if "pad" in str(n.target))
    assert (after.target, after.args[1:], after.kwargs) == (before.target, before.args[1:], before.kwargs)
