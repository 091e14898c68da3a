"""Integers that Inductor's x86 kernels compute with, and configs for them.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torchquilt import QuantizationConfig, QuantizationSpec

#: The largest integer of an activation, with the whole range of uint8 and with half of it.
WHOLE_RANGE, REDUCED_RANGE = 255, 127


def get_default_x86_inductor_quantization_config(
    is_qat: bool = False,
    is_dynamic: bool = False,
    reduce_range: bool = True,
    *,
    is_per_channel: bool = True,
) -> QuantizationConfig:
    """A config for Inductor on x86: uint8 affine activations, int8 symmetric weights.

    An output has no parameters of its own: it is quantized where an operator reads it as integers.

    Args:
        is_qat: meant for quantization-aware training, see :func:`torchquilt.prepare_qat_pt2e`.
        is_dynamic: activations are quantized when the model runs, each tensor with one scale. For linear.
        reduce_range: activations use the integers 0..127 instead of 0..255. Processors without VNNI
            instructions add two products of 8-bit integers with 16 bits, which saturates: 255 * 127 * 2
            does not fit, 127 * 128 * 2 does. The machine that quantizes need not be the one that runs,
            so this is the default; it costs one bit of each activation. Set it to False where all
            machines that run the model have VNNI (``avx512_vnni`` or ``avx_vnni`` in ``/proc/cpuinfo``).
        is_per_channel: a weight has one scale for each output channel; otherwise one scale is repeated for
            all of them, since the kernels read one for each.
    """
    largest = REDUCED_RANGE if reduce_range else WHOLE_RANGE
    return QuantizationConfig(
        input_activation=QuantizationSpec("uint8", 0, largest, "per_tensor", is_dynamic=is_dynamic),
        weight=_weight(is_per_channel),
        is_qat=is_qat,
    )


def get_weight_only_config() -> QuantizationConfig:
    """A config for linear layers whose weights are int8, and whose activations stay in float."""
    return QuantizationConfig(weight=_weight(is_per_channel=True))


def _weight(is_per_channel: bool) -> QuantizationSpec:
    return QuantizationSpec(
        "int8",
        -128,
        127,
        "per_axis",
        symmetric=True,
        ch_axis=0,
        uniform=not is_per_channel,
    )


#: Name → function that makes the config. The manifest in ``plugin.py`` lists the same names.
PRESETS: Mapping[str, Callable[[], QuantizationConfig]] = {
    "static_int8": lambda: get_default_x86_inductor_quantization_config(is_per_channel=False),
    "static_int8_per_channel": lambda: get_default_x86_inductor_quantization_config(),
    "dynamic_int8_per_channel": lambda: get_default_x86_inductor_quantization_config(is_dynamic=True),
    "weight_only_int8": get_weight_only_config,
}
