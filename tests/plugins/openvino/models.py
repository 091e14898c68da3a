"""Small models for OpenVINO, quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F  # noqa: N812

import torchquilt as tq
from torchquilt.testing.operators import uniform


class Images(nn.Module):
    """Convolutions with a residual, pooling and a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify."""
        x = self.stem(x).relu()
        x = F.max_pool2d((x + self.conv(x)).relu(), 2)
        found: torch.Tensor = self.head(x.mean((2, 3)))
        return found


class Calling(nn.Module):
    """A function as a model, with the modules that it calls."""

    def __init__(self, function: Callable[..., Any], *modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(modules)

    def forward(self, *inputs: Any) -> Any:
        """Call it."""
        return self.function(*self.parts, *inputs)


def images(batch: int = 2) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A model of images, and its inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Images().eval(), (uniform(batch, 3, 12, 12),)


def quantized(
    model: nn.Module,
    inputs: tuple[Any, ...],
    preset: str = "static_int8_per_channel",
    *,
    fold: bool = True,
    dynamic_shapes: Any = None,
) -> GraphModule:
    """A model quantized for OpenVINO, calibrated with its inputs."""
    exported = torch.export.export(model.eval(), inputs, dynamic_shapes=dynamic_shapes)
    prepared = tq.prepare_pt2e(exported, tq.quantizer("openvino", preset=preset))
    return tq.convert_pt2e(tq.calibrate(prepared, [inputs]), fold_quantize=fold)


def program(
    model: nn.Module, inputs: tuple[Any, ...], preset: str = "static_int8_per_channel", **options: Any
) -> tq.LoweredProgram:
    """The program of a quantized model, compared with it."""
    return tq.lower(quantized(model, inputs, preset, **options), inputs, target="openvino", verify=True)


def statuses(lowered: tq.LoweredProgram) -> dict[str, str]:
    """Node → lowering status."""
    assert lowered.ledger is not None
    return {row.node: row.lowered.code for row in lowered.ledger.rows if row.lowered is not None}
