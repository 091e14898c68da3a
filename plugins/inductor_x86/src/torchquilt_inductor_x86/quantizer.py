"""The quantizer: Inductor's table and presets; everything else is the core's PatternQuantizer.

Importing this module does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchquilt import PatternQuantizer
from torchquilt_inductor_x86.specs import PRESETS
from torchquilt_inductor_x86.support import SUPPORT

if TYPE_CHECKING:
    from typing_extensions import Self

    from torchquilt import QuantizationConfig


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
