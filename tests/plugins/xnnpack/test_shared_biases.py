"""One stored bias that several operators read, however they were quantized, and by whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Node

import torchquilt as tq
from plugins.oracle import outputs_of
from strategies import INT8, WEIGHT, ByFunction, Fn, export, normal, quantize, sqnr

pytestmark = pytest.mark.long

LEAST = 40.0
#: Beside which the other operator's results are small: its bias is on a scale of its own.
_LOUD = 300.0


def both(layer: Callable[[Any, torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    """One layer called with what is quiet, and with what is loud."""
    return lambda m, x: (layer(m, x), layer(m, x * _LOUD))


CONV = both(lambda m, x: m.conv(x))
LINEAR = both(lambda m, x: m.linear(x))
BUFFER = both(lambda m, x: nn.functional.linear(x, m.weight, m.bias))


def model(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A model whose two operators share a bias, and an input."""
    torch.manual_seed(0)
    if name == "convolution":
        return Fn(CONV, conv=nn.Conv2d(4, 5, 3, padding=1)), normal(1, 4, 6, 6)
    if name == "linear":
        return Fn(LINEAR, linear=nn.Linear(6, 5)), normal(3, 6)
    return Fn(BUFFER, weight=nn.Parameter(normal(5, 6)), bias=normal(5, seed=1)), normal(3, 6)


def quantizer(asked: tuple[bool, bool]) -> ByFunction:
    """Quantizer that knows nothing of the delegate, and leaves the bias to it.

    Args:
        asked: for the first and the second operator, whether it is quantized.
    """
    seen: list[Node] = []

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        if node.op != "call_function" or not any(one in str(node.target) for one in ("conv2d", "linear")):
            return None
        seen.append(node)
        if not asked[len(seen) - 1]:
            return None
        data, weight = node.all_input_nodes[:2]
        return tq.QuantizationAnnotation({data: INT8, weight: WEIGHT}, INT8)

    return ByFunction(decide)


@pytest.mark.parametrize("asked", [(True, True), (False, True), (True, False)], ids=str)
@pytest.mark.parametrize("name", ["convolution", "linear", "linear with a buffer"])
def test_each_reader_gets_the_bias_that_it_needs(name: str, asked: tuple[bool, bool]) -> None:
    """The delegate has a bias once, on the scale of one input; it is right for the other reader, too."""
    module, x = model(name)
    converted = quantize(module, quantizer(asked), x)

    program = tq.lower(converted, (x,), backends=["xnnpack"], verify=False)

    for expected, found in zip(outputs_of(converted, (x,)), program.run(x), strict=True):
        assert sqnr(expected, found) > LEAST
    assert [
        kernel.arithmetic for kernel in program.kernels if kernel.name in ("Conv2d", "FullyConnected")
    ] == ["integer" if one else "float" for one in asked]


def test_the_model_is_left_as_it_was() -> None:
    """Lowering stores copies in the program alone."""
    module, x = model("linear")
    converted: GraphModule = quantize(module, quantizer((True, True)), x)
    names, exported = list(converted.state_dict()), export(converted, x)
    graph, held = str(exported.graph), list(exported.state_dict)

    tq.lower(exported, (x,), backends=["xnnpack"])

    assert list(converted.state_dict()) == names
    assert (str(exported.graph), list(exported.state_dict)) == (graph, held)
