"""Integers that OpenVINO's CPU kernels compute with, and configs for them.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torchquilt import QuantizationConfig, QuantizationSpec

#: Calibration chooses no scale of activations below this one, and none of weights.
SMALLEST_SCALE = 2.0**-18


def get_openvino_config(
    is_per_channel: bool = True,
    is_qat: bool = False,
    weight_only: bool = False,
    symmetric_activations: bool = False,
) -> QuantizationConfig:
    """A config for OpenVINO's CPU kernels: activations of uint8 with a zero point, symmetric int8 weights.

    What a product of matrices returns stays in float where only operators in float read it.

    Args:
        is_per_channel: a weight has one scale for each output channel instead of one in all.
        is_qat: meant for quantization-aware training, see :func:`torchquilt.prepare_qat_pt2e`.
        weight_only: activations stay in float. The kernels multiply them with weights that are stored as
            integers, which takes less memory and less time to read it.
        symmetric_activations: the zero point of activations is 128. Transposed convolutions need it.
    """
    activation = (
        None
        if weight_only
        else QuantizationSpec("uint8", 0, 255, symmetric=symmetric_activations, eps=SMALLEST_SCALE)
    )
    weight = QuantizationSpec(
        "int8",
        -127,
        127,
        "per_axis" if is_per_channel else "per_tensor",
        symmetric=True,
        ch_axis=0 if is_per_channel else None,
        eps=SMALLEST_SCALE,
    )
    return QuantizationConfig(activation, activation, weight, is_qat=is_qat)


#: Name → function that makes the config. The manifest in ``plugin.py`` lists the same names.
PRESETS: Mapping[str, Callable[[], QuantizationConfig]] = {
    "static_int8": lambda: get_openvino_config(is_per_channel=False),
    "static_int8_per_channel": get_openvino_config,
    "weight_only_int8": lambda: get_openvino_config(weight_only=True),
}
