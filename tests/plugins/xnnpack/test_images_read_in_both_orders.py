"""Operators decomposed into several that read one image, some channels last and some as it is exported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import torchquilt as tq
from strategies import Fn, normal, quantize
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long


_Operator = Callable[[torch.Tensor], torch.Tensor]

#: The first ones are cut in two by the delegate; all are decomposed, if only for the runtime.
OPERATORS: dict[str, _Operator] = {
    "attention to itself": lambda y: functional.scaled_dot_product_attention(y, y, y),
    "attention to keys": lambda y: functional.scaled_dot_product_attention(y.tanh(), y, y.tanh()),
    "causal attention": lambda y: functional.scaled_dot_product_attention(y, y, y, is_causal=True),
    "mish": functional.mish,
    "softplus": functional.softplus,
    "logsigmoid": functional.logsigmoid,
    "silu": functional.silu,
    "glu": lambda y: functional.glu(y, 1),
    "log_softmax": lambda y: functional.log_softmax(y, 1),
    "addcmul": lambda y: torch.addcmul(y, y, y),
    "lerp": lambda y: torch.lerp(y, y.flip(-1), 0.25),
    "normalize": functional.normalize,
    "layer_norm": lambda y: functional.layer_norm(y, y.shape[-1:]),
    "group_norm": lambda y: functional.group_norm(y, 2),
    "std": lambda y: y.std((2, 3)),
    "cosine_similarity": lambda y: functional.cosine_similarity(y, y.flip(-1)),
    "einsum": lambda y: torch.einsum("bchw,bcvw->bchv", y, y),
}

#: What turns an image in the delegate: images of these layers lie channels last.
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Conv2d(8, 8, 1),
    "pooling": lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.MaxPool2d(1)),
}

#: A wrong order ends the run where the sizes differ, and gives wrong numbers where they do not.
SIZES = {"a cube": (1, 8, 8, 8), "sizes that differ": (2, 8, 4, 6)}


def program_of(operator: _Operator, layer: nn.Module, x: torch.Tensor) -> tq.LoweredProgram:
    """A static layer and an operator of its image, lowered and compared with the quantized model."""
    torch.manual_seed(0)
    module = Fn(lambda m, x: operator(m.layer(x)), layer=layer).eval()
    config = get_symmetric_quantization_config(is_per_channel=True)
    model: Any = quantize(module, XNNPACKQuantizer().set_global(config), x)
    return tq.lower(model, (x,), backends=["xnnpack"], verify=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["attention to itself", "mish"])
def test_operators_that_the_delegate_cuts_in_two(name: str, size: str) -> None:
    """That was an error of the runtime, or 5.7 dB for the cube."""
    program = program_of(OPERATORS[name], LAYERS["convolution"](), normal(*SIZES[size]))
    assert program.verification is not None


@pytest.mark.long
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_that_are_decomposed(name: str, layer: str, size: str) -> None:
    """Each operator that they become reads the image in the order that it needs."""
    program = program_of(OPERATORS[name], LAYERS[layer](), normal(*SIZES[size]))
    assert program.verification is not None


def test_what_stays_outside_shares_one_conversion() -> None:
    """A dequantize for each operator is for those of the delegate; others would convert for nothing."""
    program = program_of(torch.nan_to_num, LAYERS["convolution"](), normal(*SIZES["a cube"]))
    assert {"aten::isnan.out", "aten::eq.Scalar_out", "aten::where.self_out"} <= {*program.operators}
    assert [kernel.name for kernel in program.kernels].count("Convert") == 2  # one is of the input
