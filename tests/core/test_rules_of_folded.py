"""Rules about what the graph no longer has: a folded BatchNorm, an operator that worked in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import torchquilt as tq
from strategies import calls, export, normal
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

X = normal(1, 3, 8, 8)
STATIC = get_symmetric_quantization_config()
CHANNELS = get_symmetric_quantization_config(is_per_channel=True)


class Net(nn.Module):
    """conv, bn, relu in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.bn.running_mean.normal_()

    def forward(self, x: torch.Tensor) -> Any:
        """In order."""
        return self.act(self.bn(self.conv(x)))


def static() -> XNNPACKQuantizer:
    """Everywhere."""
    return XNNPACKQuantizer().set_global(STATIC)


@pytest.mark.parametrize(
    "quantizer",
    [
        static().set_object_type(nn.BatchNorm2d, None),
        static().set_module_name("bn", None),
        static().set_object_type(torch.ops.aten.batch_norm.default, None),
        tq.ComposableQuantizer([static().set_module_name("bn", None), XNNPACKQuantizer()]),
    ],
    ids=["class", "name", "operator", "composed"],
)
def test_a_batch_norm_that_is_left_in_float_is_not_folded(quantizer: tq.Quantizer) -> None:
    """The convolution is quantized by itself, and the BatchNorm computes as it did."""
    exported = export(Net(), X)
    prepared = tq.prepare_pt2e(exported, quantizer)
    rows = {row.op: row for row in tq.ledger_of(prepared)}
    assert rows["aten.conv2d.default"].is_quantized
    assert rows["aten.batch_norm.default"].code in ("excluded_by_intent", "unsupported_op")
    assert torch.equal(prepared(X), exported.module()(X))


@pytest.mark.parametrize(
    "quantizer",
    [
        static(),
        static().set_global(None).set_module_name("conv", STATIC),
        tq.ComposableQuantizer([XNNPACKQuantizer().set_module_name("**.bn", None), static()]),
    ],
    ids=["asked", "the convolution alone", "left to another"],
)
def test_a_batch_norm_is_folded_where_what_is_before_it_is_asked_for(quantizer: tq.Quantizer) -> None:
    """Leaving it in float is the decision of the one, and the other takes both."""
    prepared = tq.prepare_pt2e(export(Net(), X), quantizer)
    assert not calls(prepared, "batch_norm")


def test_a_rule_for_a_folded_batch_norm_says_what_it_is_folded_into() -> None:
    """The rule cannot do what it asks; one with the config of the convolution is fulfilled."""
    with pytest.raises(tq.IntentError, match=r"folded into conv2d \(conv\)") as caught:
        tq.explain(export(Net(), X), static().set_module_name("bn", CHANNELS))
    assert "module conv" in str(caught.value.remedy)
    assert tq.explain(export(Net(), X), static().set_module_name("bn", STATIC)).quantized


def test_a_rule_for_several_folded_batch_norms_is_told_once() -> None:
    """One rule, one problem; a second rule has a problem of its own."""
    model = nn.Sequential(Net(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    rules = static().set_object_type(nn.BatchNorm2d, CHANNELS).set_module_name("2", CHANNELS)
    with pytest.warns(UserWarning, match="has no effect"):
        problems = tq.explain(export(model, X), rules, strict=False).problems
    told = sorted(problem.partition(" has no effect")[0] for problem in problems)
    assert told == ["The rule for module 2", "The rule for type torch.nn.modules.batchnorm.BatchNorm2d"]


@pytest.mark.parametrize("subject", [torch.ops.aten.relu.default, "aten.relu.default", "aten.relu_.default"])
def test_a_rule_for_an_operator_is_about_its_in_place_form(subject: object) -> None:
    """The ledger spells it aten.relu.default, and the model had aten.relu_.default: either names it."""
    ledger = tq.explain(export(Net(), X), static().set_object_type(subject, None))
    (row,) = (row for row in ledger if "relu" in row.op)
    assert (row.op, row.code) == ("aten.relu.default", "excluded_by_intent")
