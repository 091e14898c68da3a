"""Ours, a foreign quantizer and a user's own in one composition."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.fx import GraphModule
from torchao.quantization.pt2e import MinMaxObserver
from torchao.quantization.pt2e import quantizer as theirs

import torchquilt as tq
from plugins.torchao.flows import by_torchquilt, exported
from plugins.torchao.models import model_of
from plugins.torchao.vendors import VENDORS
from strategies import sqnr

pytestmark = pytest.mark.filterwarnings("ignore:Something was asked for in this model")


class OfUser(tq.Quantizer):
    """Quantizes what comes out of a sigmoid, to 8 bits between 0 and 1."""

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate each sigmoid that is free."""
        for node in model.graph.nodes:
            if node.target is torch.ops.aten.sigmoid.default and "quantization_annotation" not in node.meta:
                spec = tq.FixedQParamsQuantizationSpec(torch.int8, 1 / 256, -128)
                node.meta["quantization_annotation"] = tq.QuantizationAnnotation({}, spec)
        return model


class Greedy(theirs.Quantizer):  # type: ignore[misc]
    """A foreign quantizer that annotates each linear anew, or takes away or edits what stands there."""

    def __init__(self, deed: str) -> None:
        self.deed = deed

    def annotate(self, model: GraphModule) -> GraphModule:
        """Change the annotation of each linear."""
        spec = theirs.QuantizationSpec(torch.int8, MinMaxObserver, -128, 127, torch.per_tensor_affine)
        for node in model.graph.nodes:
            if node.target is torch.ops.aten.linear.default:
                if self.deed == "changed":
                    node.meta["quantization_annotation"] = theirs.QuantizationAnnotation(
                        {}, spec, _annotated=True
                    )
                elif self.deed == "removed":
                    node.meta.pop("quantization_annotation", None)
                elif self.deed == "edited":
                    node.meta["quantization_annotation"].input_qspec_map.clear()
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to check."""


def members() -> dict[str, Any]:
    """One of each kind, all of which want some of the operators of the same model."""
    return {
        "ours": tq.quantizer("xnnpack", "static_int8"),
        "theirs": VENDORS["xnnpack per channel"](),
        "own": OfUser(),
    }


@pytest.mark.parametrize("order", list(itertools.permutations(("ours", "theirs", "own"))), ids="-".join)
def test_ours_theirs_and_a_users_own_compose_in_every_order(order: tuple[str, ...]) -> None:
    """The first of them keeps a node, and the model still computes what it did."""
    quantizers = tq.ComposableQuantizer([members()[name] for name in order])
    ledger = tq.explain(exported(model_of("gate")), quantizers, strict=False)
    takers = {row.op: row.quantizer for row in ledger.rows}
    weights = [tensor.spec for row in ledger.rows for tensor in row.tensors if "weight" in tensor.edge]

    first = next(name for name in order if name != "own")
    assert takers["aten.linear.default"] == "XNNPACKQuantizer"
    # Both are called so; theirs is the one with a scale for each channel.
    assert len(weights) == 2
    assert all(("per_axis" in spec) == (first == "theirs") for spec in weights)
    assert takers["aten.sigmoid.default"] in ("OfUser", "XNNPACKQuantizer")

    model = model_of("gate")
    converted = by_torchquilt(model, quantizers)
    assert sqnr(model.module(*model.inputs), converted(*model.inputs)) > 20


@pytest.mark.parametrize("deed", ["changed", "removed", "edited"])
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_a_foreign_quantizer_that_touches_anothers_annotation_is_an_error(deed: str, first: str) -> None:
    """The error names both, whether the annotation is replaced, taken away or edited in place."""
    quantizers = tq.ComposableQuantizer([members()[first], Greedy(deed)])

    with pytest.raises(tq.CompositionError) as caught:
        tq.explain(exported(model_of("linear")), quantizers)
    assert "XNNPACKQuantizer (first), Greedy (now)" in str(caught.value)


def test_a_foreign_quantizer_alone_may_do_as_it_likes() -> None:
    """Its own annotations are its own."""
    ledger = tq.explain(exported(model_of("linear")), Greedy("changed"))
    assert {row.quantizer for row in ledger.rows} == {"Greedy"}
