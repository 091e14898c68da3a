"""The numbers that XNNPACK computes with, and the configs made of them.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torchquilt import QuantizationConfig, QuantizationSpec, UnsupportedConfigError

#: Calibration chooses no scale below this one, as in ExecuTorch's own configs for XNNPACK.
SMALLEST_SCALE = 2.0**-12


def get_symmetric_quantization_config(
    is_per_channel: bool = False,
    is_qat: bool = False,
    is_dynamic: bool = False,
    act_qmin: int = -128,
    act_qmax: int = 127,
    weight_qmin: int = -127,
    weight_qmax: int = 127,
) -> QuantizationConfig:
    """A config for int8 on XNNPACK: affine activations, symmetric weights.

    Args:
        is_per_channel: a weight has one scale for each output channel instead of one in all.
        is_qat: for quantization-aware training, which this plugin does not offer yet.
        is_dynamic: activations are quantized when the model runs, each row (token) by itself, as
            XNNPACK's dynamic kernels do; outputs stay float32. These kernels read a weight scale for each
            output channel, so without ``is_per_channel`` one scale is repeated for all of them.
        act_qmin: smallest number of activations, from -128 on. Dynamic ones use all of int8.
        act_qmax: largest number of activations, up to 127.
        weight_qmin: smallest number of weights, from -128 on.
        weight_qmax: largest number of weights, up to 127.

    Raises:
        SpecError: a range is empty, or does not fit into int8.
        UnsupportedConfigError: ``is_qat``.
    """
    if is_qat:
        raise UnsupportedConfigError(
            "Quantization-aware training is not supported by torchquilt-xnnpack.",
            expected="is_qat=False",
            got="is_qat=True",
            remedy="use post-training quantization: leave is_qat out",
        )
    granularity = "per_token" if is_dynamic else "per_tensor"
    activation = QuantizationSpec(
        "int8", act_qmin, act_qmax, granularity, is_dynamic=is_dynamic, eps=SMALLEST_SCALE
    )
    weight = QuantizationSpec(
        "int8",
        weight_qmin,
        weight_qmax,
        "per_axis" if is_per_channel or is_dynamic else "per_tensor",
        symmetric=True,
        ch_axis=0 if is_per_channel or is_dynamic else None,
        eps=SMALLEST_SCALE,
        uniform=is_dynamic and not is_per_channel,
    )
    return QuantizationConfig(
        input_activation=activation, output_activation=None if is_dynamic else activation, weight=weight
    )


#: Name → function that makes the config. The manifest in ``plugin.py`` lists the same names.
PRESETS: Mapping[str, Callable[[], QuantizationConfig]] = {
    "static_int8": lambda: get_symmetric_quantization_config(),
    "static_int8_per_channel": lambda: get_symmetric_quantization_config(is_per_channel=True),
    "dynamic_int8": lambda: get_symmetric_quantization_config(is_dynamic=True),
    "dynamic_int8_per_channel": lambda: get_symmetric_quantization_config(
        is_per_channel=True, is_dynamic=True
    ),
}
