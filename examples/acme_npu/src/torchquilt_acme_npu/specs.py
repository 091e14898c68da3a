"""The specs of the tensors that the Acme NPU computes with, and the configs made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torchquilt import QuantizationConfig, QuantizationSpec

#: Number of 4-bit weights that share a scale.
GROUP = 32


def get_acme_config(activation_bits: int = 8, weight_bits: int = 8) -> QuantizationConfig:
    """Static quantization with 8 or 16 bits of activations, and 8 or 4 of weights.

    Args:
        activation_bits: 8, affine; or 16, symmetric.
        weight_bits: 8, with a scale for each output channel; or 4, with one for each group of 32.
    """
    activation = QuantizationSpec(f"int{activation_bits}", symmetric=activation_bits == 16)
    if weight_bits == 4:
        weight = QuantizationSpec("int8", -8, 7, "per_group", group_size=GROUP, symmetric=True)
    else:
        weight = QuantizationSpec("int8", -127, 127, "per_axis", ch_axis=0, symmetric=True)
    return QuantizationConfig(activation, activation, weight)


#: Name → function that makes the config. The manifest in ``plugin.py`` lists the same names.
PRESETS: Mapping[str, Callable[[], QuantizationConfig]] = {
    "int8": get_acme_config,
    "int16": lambda: get_acme_config(activation_bits=16),
    "int16_int4": lambda: get_acme_config(activation_bits=16, weight_bits=4),
}
