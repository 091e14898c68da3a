"""A symmetric range that leaves one side of zero without integers is warned of, where values are there."""

from __future__ import annotations

import warnings

import attrs
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from strategies import normal, outputs_of, prepare, quantize
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

ONE_SIDED = tq.QuantizationSpec("int8", 0, 127, symmetric=True)


def converted(model: nn.Module, low: int, high: int, *, is_per_channel: bool = True) -> GraphModule:
    """A linear whose weight has this range."""
    config = get_symmetric_quantization_config(
        is_per_channel=is_per_channel, weight_qmin=low, weight_qmax=high
    )
    return quantize(model, XNNPACKQuantizer().set_global(config), normal(4, 64))


def layer(sign: float = 0.0) -> nn.Linear:
    """A linear with weights of both signs, or of one."""
    torch.manual_seed(0)
    model = nn.Linear(64, 32)
    with torch.no_grad():
        if sign:
            model.weight.copy_(model.weight.abs() * sign)
    return model


@pytest.mark.parametrize(
    ("low", "high", "sign"), [(0, 15, 0.0), (-1, 15, 0.0), (-100, 0, 0.0), (0, 127, -1.0)]
)
@pytest.mark.parametrize("is_per_channel", [False, True])
def test_weights_that_are_cut_off_are_warned_of(
    low: int, high: int, sign: float, is_per_channel: bool
) -> None:
    """On the console and in the ledger: how many, and why."""
    with pytest.warns(UserWarning, match=f"cut_off: .* the symmetric range {low} … {high}") as told:
        model = converted(layer(sign), low, high, is_per_channel=is_per_channel)
    assert len([one for one in told if "cut_off" in str(one.message)]) == 1
    (caution,) = tq.ledger_of(model).warnings
    assert (caution.edges, caution.code) == ("weight → linear", "cut_off")
    if sign:
        assert caution.text.startswith(("9", "100%"))


@pytest.mark.parametrize(
    ("low", "high", "sign"), [(-127, 127, 0.0), (-8, 7, 0.0), (0, 15, 1.0), (-100, 0, -1.0)]
)
def test_others_are_not(low: int, high: int, sign: float) -> None:
    """A range about as long on either side, and one of one side for values of that side."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = converted(layer(sign), low, high)
    assert not tq.ledger_of(model).warnings


def test_activations_are_told_as_weights_are() -> None:
    """Observed values count: relu has no negative ones, and a linear has."""
    model, x = nn.Sequential(nn.Linear(64, 32), nn.ReLU()), normal(4, 64)
    for part, is_cut in (("linear", True), ("relu", False)):
        prepared = prepare(model, outputs_of(part, spec=ONE_SIDED), x)
        prepared(x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = tq.ledger_of(tq.convert_pt2e(prepared)).warnings
        assert [one.edges for one in found] == ([part] if is_cut else [])


def test_an_affine_range_reaches_everything() -> None:
    """Its zero point is where it has to be."""
    spec = attrs.evolve(ONE_SIDED, symmetric=False, zero_point=None)
    prepared = prepare(nn.Linear(64, 32), outputs_of("linear", spec=spec), normal(4, 64))
    prepared(normal(4, 64))
    assert not tq.ledger_of(tq.convert_pt2e(prepared)).warnings
