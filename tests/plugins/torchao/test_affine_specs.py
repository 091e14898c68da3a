"""Specs with torchao's affine observers: those that our specs can say, and the reasons for the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchao.quantization.granularity import PerAxis, PerBlock, PerGroup, PerTensor, PerToken
from torchao.quantization.pt2e import MappingType, PlaceholderObserver, ZeroPointDomain
from torchao.quantization.pt2e import quantizer as theirs
from torchao.quantization.pt2e._affine_quantization import (
    AffineQuantizedMinMaxObserver,
    AffineQuantizedMovingAverageMinMaxObserver,
    AffineQuantizedPlaceholderObserver,
)

import torchquilt as tq
from plugins.oracle import Model, describe
from plugins.torchao.flows import by_torchao, by_torchquilt
from strategies import sqnr
from torchquilt_torchao import foreign

pytestmark = pytest.mark.filterwarnings("ignore")  # of torchao's own

SYMMETRIC, ASYMMETRIC = MappingType.SYMMETRIC, MappingType.ASYMMETRIC
FOUR_BITS = {"quant_min": -8, "quant_max": 7}


def spec(observer: Any, mapping: Any, granularity: Any, **more: Any) -> Any:
    """A spec of torchao with an affine observer.

    Args:
        observer: its class.
        mapping: of it.
        granularity: of it.
        more: ``options`` of the observer, and fields of the spec.
    """
    options = {"mapping_type": mapping, "granularity": granularity, "target_dtype": torch.int8}
    made = observer.with_args(**{**options, **more.pop("options", {})})
    return theirs.QuantizationSpec(torch.int8, made, **more)


class Linears(theirs.Quantizer):  # type: ignore[misc]
    """Gives linears an input and a weight of these specs."""

    def __init__(self, activation: Any, weight: Any) -> None:
        self.activation, self.weight = activation, weight

    def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        """Annotate."""
        for node in model.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default):
            inputs = {node.args[0]: self.activation, node.args[1]: self.weight}
            found = theirs.QuantizationAnnotation(inputs, None, _annotated=True)
            node.meta["quantization_annotation"] = found
        return model

    def validate(self, model: torch.fx.GraphModule) -> None:
        """Nothing to check."""


def perceptron() -> Model:
    """Two linears."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8))
    return Model(module, (torch.randn(5, 32),))


def static(granularity: Any, mapping: Any = SYMMETRIC, **more: Any) -> Any:
    """The spec of a weight."""
    return spec(AffineQuantizedMinMaxObserver, mapping, granularity, **more)


TOKENS = spec(AffineQuantizedPlaceholderObserver, ASYMMETRIC, PerToken(), is_dynamic=True)


@pytest.mark.parametrize(
    ("activation", "weight", "operator"),
    [
        (None, static(PerGroup(8), **FOUR_BITS), "channel_group"),
        (None, static(PerGroup(8), ASYMMETRIC, **FOUR_BITS), "channel_group"),
        (None, static(PerBlock((1, 8)), **FOUR_BITS), "channel_group"),
        (None, static(PerAxis(0)), "per_channel"),
        (None, static(PerAxis(0), ASYMMETRIC), "per_channel"),
        (static(PerTensor(), ASYMMETRIC), static(PerTensor()), "per_tensor"),
        (TOKENS, static(PerGroup(8), **FOUR_BITS), "per_token"),
    ],
)
def test_affine_specs_are_those_of_torchaos_flow(activation: Any, weight: Any, operator: str) -> None:
    """Other operators say the same: the outputs are those of torchao's flow."""
    quantizer = Linears(activation, weight)
    expected, found = by_torchao(perceptron(), quantizer), by_torchquilt(perceptron(), quantizer)
    assert any(operator in line for line in describe(found))
    inputs = perceptron().inputs
    assert sqnr(expected(*inputs), found(*inputs)) > 100
    assert sqnr(perceptron().module(*inputs), found(*inputs)) < 60, "it is quantized"


NO_ZERO = {"options": {"preserve_zero": False}}
FLOAT_ZERO = {"options": {"zero_point_domain": ZeroPointDomain.FLOAT}}
FLOAT8 = {"options": {"target_dtype": torch.float8_e4m3fn}}


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (static(PerBlock((2, 8))), "operators of its own"),
        (static(PerGroup(8), MappingType.SYMMETRIC_NO_CLIPPING_ERR), "operators of its own"),
        (static(PerGroup(8), ASYMMETRIC, **NO_ZERO), "operators of its own"),
        (static(PerGroup(8), ASYMMETRIC, **FLOAT_ZERO), "operators of its own"),
        (static(PerAxis(0), **FLOAT8), "no integer type"),
        (theirs.QuantizationSpec(torch.float16, PlaceholderObserver), "no integer type"),
        (theirs.QuantizationSpec(torch.float8_e4m3fn, PlaceholderObserver), "no integer type"),
        (spec(AffineQuantizedMovingAverageMinMaxObserver, SYMMETRIC, PerToken()), "Per-token"),
        (spec(AffineQuantizedPlaceholderObserver, SYMMETRIC, PerToken(), is_dynamic=True), "Per-token"),
    ],
)
def test_what_no_operator_of_the_dialect_says_is_refused(weight: Any, reason: str) -> None:
    """By name, with the reason."""
    with pytest.raises(tq.AnnotationError, match=reason) as caught:
        by_torchquilt(perceptron(), Linears(None, weight))
    assert "Linears" in str(caught.value)


def test_their_affine_observers_are_not_run() -> None:
    """Their results are for operators of torchao's own."""
    quantizer = foreign(Linears(None, static(PerGroup(8), **FOUR_BITS)), observers="theirs")
    with pytest.raises(tq.AnnotationError, match="AffineQuantizedMinMaxObserver cannot be run"):
        by_torchquilt(perceptron(), quantizer)
