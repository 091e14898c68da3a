"""The kit compares what a ledger says with what the payloads of delegates have."""

from __future__ import annotations

import attrs
from torch import nn

import torchquilt as tq
from plugins.executorch.models import converted, xnnpack
from strategies import Fn, normal
from torchquilt.lowering import Kernel, LoweredProgram
from torchquilt.testing.targets import contradictions


def program() -> LoweredProgram:
    """Two layers that run as integers, and a softmax in float."""
    module = Fn(lambda m, x: m.b(m.a(x).relu()).softmax(-1), a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    return tq.lower(converted(module, xnnpack(), normal(3, 8)), (normal(3, 8),))


def test_what_agrees_is_no_contradiction_and_what_does_not_is_told() -> None:
    """Kernels in float where the ledger has integers: all of them, or one more than it has operators."""
    lowered = program()
    assert [*contradictions(lowered)] == []
    layer = Kernel("FullyConnected", ("fp32", "fp32"), ("fp32",), "float")
    both = attrs.evolve(lowered, kernels=(layer, layer))
    told = [*contradictions(both)]
    assert len(told) == 2
    assert "linear" in told[0]
    assert "FullyConnected(fp32, fp32) -> fp32" in told[1]
    one = attrs.evolve(lowered, kernels=(*lowered.kernels, layer, layer))
    assert len([*contradictions(one)]) == 1
