"""The quantizer: Inductor's table and presets; everything else is the core's PatternQuantizer.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from torchquilt import PatternQuantizer
from torchquilt_inductor_x86.specs import PRESETS
from torchquilt_inductor_x86.support import SUPPORT

if TYPE_CHECKING:
    from typing_extensions import Self

    from torchquilt import QuantizationConfig


def _linear_of_bfloat16() -> tuple[Any, tuple[Any, ...]]:
    """A model for the conformance kit with as many channels as the row for weights alone takes."""
    import torch

    return torch.nn.Linear(16, 24).bfloat16(), (torch.randn(3, 16).bfloat16(),)


def _addition(*, relu: bool, is_read_later: bool) -> tuple[Any, tuple[Any, ...]]:
    """A model for the conformance kit whose addition the kernel cannot do in place.

    Args:
        relu: whether it is followed by relu.
        is_read_later: whether what is added is read again, or else has another shape than the product.
    """
    import torch

    class Added(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(4, 4, 3)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            found = self.layer(x) + y
            found = torch.relu(found) if relu else found
            return found * y if is_read_later else found

    size = 4 if is_read_later else 1
    return Added(), (torch.randn(1, 4, 6, 6), torch.randn(1, 4, size, size))


def _additions(*, relu: bool) -> tuple[Callable[[], Any], ...]:
    return tuple(partial(_addition, relu=relu, is_read_later=later) for later in (False, True))


class X86InductorQuantizer(PatternQuantizer):
    """Quantizes for Inductor on x86: uint8 activations, static or dynamic, and int8 weights.

    Nothing is quantized until something is asked for::

        X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())

    Rules are given with ``set_global``, ``set_object_type``, ``set_module_name`` and
    ``set_filter_function``; each takes a config, or None for "leave it in float", and returns the
    quantizer. The most specific rule wins. The names of torchao's quantizer are understood, too.
    """

    TABLE = SUPPORT
    PRESETS = PRESETS
    conformance_examples: ClassVar = {
        "linear": _linear_of_bfloat16,
        "conv2d_add": _additions(relu=False),
        "conv2d_add_relu": _additions(relu=True),
    }

    def set_module_name_qconfig(
        self, module_name: str, quantization_config: QuantizationConfig | None
    ) -> Self:
        """Ask for a config in a module: :meth:`set_module_name` under torchao's name."""
        return self.set_module_name(module_name, quantization_config)

    def set_module_type_qconfig(
        self, module_type: object, quantization_config: QuantizationConfig | None
    ) -> Self:
        """Ask for a config in modules of a class: :meth:`set_object_type` under torchao's name."""
        return self.set_object_type(module_type, quantization_config)

    def set_function_type_qconfig(
        self, function_type: object, quantization_config: QuantizationConfig | None
    ) -> Self:
        """Ask for a config at a function: :meth:`set_object_type` under torchao's name."""
        return self.set_object_type(function_type, quantization_config)
