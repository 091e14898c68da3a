"""Dropout that is meant: an error unless strict=False, and then it stays in float and works as before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

import torchquilt as tq
from strategies import Fn, export, normal
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

X = normal(4, 16, 16)


def attention(x: torch.Tensor) -> torch.Tensor:
    """With a dropout of its own."""
    return functional.scaled_dot_product_attention(x, x, x, dropout_p=0.1)


DROPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "dropout": lambda x: functional.dropout(x, 0.1, training=True),
    "in place": lambda x: functional.dropout(x + 1, 0.1, training=True, inplace=True),
    "by channel": lambda x: functional.feature_alpha_dropout(x, 0.1, training=True),
    "of features": lambda x: functional.dropout1d(x, 0.1, training=True),
    "alpha": lambda x: functional.alpha_dropout(x, 0.1, training=True),
    "rrelu": lambda x: functional.rrelu(x, training=True),
    "native": lambda x: torch.native_dropout(x, 0.1, True)[0],
    "attention": attention,
}


@pytest.mark.parametrize("how", DROPS)
def test_dropout_that_is_meant_stays_in_float_under_strict_false(how: str) -> None:
    """Its neighbours are quantized, it has a reason, and it draws as the float model does."""
    layers = {"first": nn.Linear(16, 16), "last": nn.Linear(16, 16)}
    model = Fn(lambda m, x: m.last(DROPS[how](m.first(x)).view(4, 16, 16)), **layers).eval()
    exported = export(model, X)
    xnnpack = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    with pytest.raises(tq.ModelError, match="training mode") as caught:
        tq.prepare_pt2e(exported, xnnpack)
    assert "strict=False" in str(caught.value.remedy)
    with pytest.warns(UserWarning, match="training mode"):
        prepared = tq.prepare_pt2e(exported, xnnpack, strict=False)
    ledger = tq.ledger_of(prepared)
    assert "training mode" in ledger.problems[0]
    (row,) = (row for row in ledger if row.code == "random")
    assert row.node == str(caught.value.node)
    assert [row.is_quantized for row in ledger if row.op == "aten.linear.default"] == [True, True]
    tq.calibrate(prepared, [X] * 4)
    converted = tq.convert_pt2e(prepared)
    torch.manual_seed(0)
    found = converted(X)
    torch.manual_seed(0)
    expected = model(X)
    # rrelu draws for negative numbers only: one that is rounded to zero shifts what all behind it draw.
    most = 2e-2 if how == "rrelu" else 5e-3
    assert (found - expected).square().sum() / expected.square().sum() < most
    assert not torch.equal(converted(X), found)  # drawn anew


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(16), nn.InstanceNorm1d(16, track_running_stats=True)])
def test_statistics_that_move_stay_an_error(norm: nn.Module) -> None:
    """A norm in training mode is another model than the one that is deployed, strict or not."""
    exported = torch.export.export(nn.Sequential(nn.Linear(16, 16), norm.train()), (X,))
    xnnpack = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
    with pytest.raises(tq.ModelError, match="training mode"):
        tq.prepare_pt2e(exported, xnnpack, strict=False)
