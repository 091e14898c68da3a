"""Models of the tests, and their way through the flow."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

import torchquilt as tq
from torchquilt_inductor_x86 import X86InductorQuantizer


class Together(nn.Module):
    """Several models as one, so that their kernels are compiled at once. Each has an input of its own."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run each."""
        return tuple(model(x) for model, x in zip(self.models, inputs, strict=True))


class Of(nn.Module):
    """A module, and a function of what it returns."""

    def __init__(self, module: nn.Module, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run both."""
        return self.function(self.module(x))


class Small(nn.Module):
    """A network with what convolutional ones have: pooling, a residual addition, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second, self.third = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images to numbers."""
        x = functional.max_pool2d(torch.relu(self.first(x)), 2)
        x = torch.relu(self.third(torch.relu(self.second(x))) + x)
        x = functional.adaptive_avg_pool2d(x, 1).flatten(1)
        return functional.gelu(self.head(x))


def quantized(
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    quantizer: tq.Quantizer | None = None,
    dynamic_shapes: object = None,
) -> torch.fx.GraphModule:
    """A model that has seen its inputs, converted."""
    quantizer = quantizer or X86InductorQuantizer.from_preset("static_int8_per_channel")
    exported = torch.export.export(model.eval(), inputs, dynamic_shapes=dynamic_shapes)
    return tq.convert_pt2e(tq.calibrate(tq.prepare_pt2e(exported, quantizer), [inputs]))
