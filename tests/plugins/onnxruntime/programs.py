"""Models for the tests of the target, converted and lowered."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq

PRESET = "static_int8_per_channel"


class Network(nn.Module):
    """Convolutions with clamps, an addition, a mean over the image, and a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        y = nn.functional.relu6(self.norm(self.first(x)))
        y = nn.functional.max_pool2d(self.second(y) + y, 2)
        found: torch.Tensor = self.last(y.mean((2, 3)))
        return found


class Block(nn.Module):
    """Two linears on tokens, a norm, and attention of the result with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(32, 64)
        self.narrow = nn.Linear(64, 32)
        self.norm = nn.LayerNorm(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        y = self.norm(self.narrow(torch.relu(self.wide(x))) + x)
        return nn.functional.scaled_dot_product_attention(y, y, y)


def normal(*sizes: int, seed: int = 0) -> torch.Tensor:
    """Numbers of a normal distribution."""
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def converted(
    module: nn.Module, inputs: tuple[Any, ...], quantizer: Any = PRESET, **options: Any
) -> GraphModule:
    """Export, calibrate and convert a module.

    Args:
        module: it is set to inference.
        inputs: of export and of calibration.
        quantizer: one, or the name of a preset of the ONNX Runtime backend.
        **options: ``dynamic_shapes`` of export, ``fold_quantize`` of convert.
    """
    if isinstance(quantizer, str):
        quantizer = tq.quantizer("onnxruntime", preset=quantizer)
    shapes = options.pop("dynamic_shapes", None)
    exported = torch.export.export(module.eval(), inputs, dynamic_shapes=shapes)
    prepared = tq.prepare_pt2e(exported, quantizer)
    return tq.convert_pt2e(tq.calibrate(prepared, [inputs]), **options)


def lowered(
    module: nn.Module, inputs: tuple[Any, ...], quantizer: Any = PRESET, **options: Any
) -> tq.LoweredProgram:
    """Lower it to ONNX Runtime, and compare the program with the quantized model."""
    model = converted(module, inputs, quantizer, **options)
    return tq.lower(model, inputs, target="onnxruntime", backends=[], verify=True)


def model_of(program: tq.LoweredProgram) -> onnx.ModelProto:
    """The file of a program."""
    return onnx.load_from_string(program.buffer)


def constants(program: tq.LoweredProgram) -> dict[str, np.ndarray[Any, Any]]:
    """Name of each constant of the file → its elements."""
    return {one.name: onnx.numpy_helper.to_array(one) for one in model_of(program).graph.initializer}


def statuses(program: tq.LoweredProgram) -> dict[str, str]:
    """Node of the model → its lowering status."""
    assert program.ledger is not None
    return {row.node: row.lowered.code for row in program.ledger if row.lowered is not None}
