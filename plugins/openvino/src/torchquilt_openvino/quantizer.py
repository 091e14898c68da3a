"""The quantizer: OpenVINO's table and presets; everything else is the core's PatternQuantizer.

Importing this module does not import torch.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torchquilt import PatternQuantizer
from torchquilt_openvino.specs import PRESETS
from torchquilt_openvino.support import SUPPORT


def _product_of_a_product() -> tuple[Any, tuple[Any, ...]]:
    """A model for the conformance kit with a product of matrices before another one."""
    import torch

    class Chain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(16, 24)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.silu(self.layer(x @ y))

    return Chain(), (torch.randn(8, 12), torch.randn(12, 16))


def _large_strides() -> tuple[Any, tuple[Any, ...]]:
    """A model for the conformance kit whose kernel moves on by more pixels than that of integers does."""
    import torch

    return torch.nn.ConvTranspose2d(3, 8, 5, stride=(1, 4)), (torch.randn(2, 3, 6, 7),)


def _small_weight() -> tuple[Any, tuple[Any, ...]]:
    """A model for the conformance kit whose weight is too small for the kernel of weights alone."""
    import torch

    return torch.nn.Linear(3, 24), (torch.randn(16, 3),)


def _small_weight_of_addmm() -> tuple[Any, tuple[Any, ...]]:
    """The same of a product that adds its bias first."""
    import torch

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(3, 24))
            self.bias = torch.nn.Parameter(torch.randn(24))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.addmm(self.bias, x, self.weight)

    return Small(), (torch.randn(16, 3),)


def _step_of_a_normalization() -> tuple[Any, tuple[Any, ...]]:
    """A model for the conformance kit whose sum is divided by."""
    import torch

    class Divided(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x / (x + y)

    return Divided(), (1 + torch.rand(3, 8, 16), 1 + torch.rand(3, 8, 16))


def _pads_two_dimensions() -> tuple[Any, tuple[Any, ...]]:
    """A model for the conformance kit that pads rows and columns."""
    import torch

    return torch.nn.ZeroPad2d((1, 2, 1, 0)), (torch.randn(2, 3, 8, 9),)


class OpenVINOQuantizer(PatternQuantizer):
    """Quantizes for OpenVINO's CPU kernels: int8, static, or weights alone.

    Nothing is quantized until something is asked for::

        OpenVINOQuantizer().set_global(get_openvino_config())

    Rules are given with ``set_global``, ``set_object_type``, ``set_module_name`` and
    ``set_filter_function``; each takes a config, or None for "leave it in float", and returns the
    quantizer. The most specific rule wins.
    """

    TABLE = SUPPORT
    PRESETS = PRESETS
    conformance_examples: ClassVar = {
        "add": _step_of_a_normalization,
        "addmm": _small_weight_of_addmm,
        "linear": _small_weight,
        "linear_silu": _product_of_a_product,
        "conv_transpose2d": _large_strides,
        "pad": _pads_two_dimensions,
    }
