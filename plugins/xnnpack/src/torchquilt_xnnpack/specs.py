"""Integers that XNNPACK computes with, and configs for them.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import attrs

from torchquilt import QuantizationConfig, QuantizationSpec, UnsupportedConfigError

# The runtime takes scales far below these: tests/plugins/xnnpack/test_scales.py runs some. Convert raises
# scales until a bias fits. ExecuTorch's own configs take 2**-12 for all of them.
#: Calibration chooses no scale of activations below this one.
SMALLEST_ACTIVATION_SCALE = 2.0**-18
#: Nor does a convolution whose scales are chosen when it runs. The runtime has no such limit; for a linear
#: the operator that chooses a scale for each token has one of its own, 2**-23.
SMALLEST_DYNAMIC_SCALE = 2.0**-60
#: Weights of static operators have no scale below this one.
SMALLEST_WEIGHT_SCALE = 2.0**-16

#: A scale of 4-bit weights is for so many of them, where they are quantized in groups.
GROUP_SIZES = (32, 64, 128, 256)


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
        is_qat: meant for quantization-aware training, see :func:`torchquilt.prepare_qat_pt2e`.
        is_dynamic: activations are quantized when the model runs, each row (token) by itself, as
            XNNPACK's dynamic kernels do; outputs stay float32. These kernels read a weight scale for each
            output channel, so without ``is_per_channel`` one scale is repeated for all of them.
        act_qmin: smallest number of activations, from -128 on. Dynamic ones use all of int8.
        act_qmax: largest number of activations, up to 127.
        weight_qmin: smallest number of weights, from -128 on.
        weight_qmax: largest number of weights, up to 127.

    Raises:
        SpecError: a range is empty, or does not fit into int8.
    """
    granularity = "per_token" if is_dynamic else "per_tensor"
    smallest = SMALLEST_DYNAMIC_SCALE if is_dynamic else SMALLEST_ACTIVATION_SCALE
    activation = QuantizationSpec(
        "int8", act_qmin, act_qmax, granularity, is_dynamic=is_dynamic, eps=smallest
    )
    weight = QuantizationSpec(
        "int8",
        weight_qmin,
        weight_qmax,
        "per_axis" if is_per_channel or is_dynamic else "per_tensor",
        symmetric=True,
        ch_axis=0 if is_per_channel or is_dynamic else None,
        eps=SMALLEST_WEIGHT_SCALE,
        uniform=is_dynamic and not is_per_channel,
    )
    return QuantizationConfig(
        input_activation=activation,
        output_activation=None if is_dynamic else activation,
        weight=weight,
        is_qat=is_qat,
    )


def get_int4_weight_config(group_size: int | None = None, is_dynamic: bool = True) -> QuantizationConfig:
    """A config for linear layers with weights of 4 bits, symmetric, and activations of 8.

    Args:
        group_size: the weights of an output channel have a scale for each run of so many (one of
            :data:`GROUP_SIZES`; the kernel reads it as bfloat16), instead of one in all. Only with
            ``is_dynamic``.
        is_dynamic: as for :func:`get_symmetric_quantization_config`.

    Raises:
        UnsupportedConfigError: groups, with activations that are calibrated.
        SpecError: ``group_size`` is less than 2.
    """
    if group_size is not None and not is_dynamic:
        raise UnsupportedConfigError(
            "XNNPACK has no kernel for weights in groups with activations that are calibrated.",
            expected="group_size=None, or is_dynamic=True",
            got=f"group_size={group_size}, is_dynamic=False",
            remedy="leave one of the two out",
        )
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    if group_size is None:
        weight = QuantizationSpec(
            "int8", -8, 7, "per_axis", symmetric=True, ch_axis=0, eps=SMALLEST_WEIGHT_SCALE
        )
    else:
        weight = QuantizationSpec("int8", -8, 7, "per_group", symmetric=True, group_size=group_size)
    return attrs.evolve(config, weight=weight)


#: Name → function that makes the config. The manifest in ``plugin.py`` lists the same names.
PRESETS: Mapping[str, Callable[[], QuantizationConfig]] = {
    "static_int8": lambda: get_symmetric_quantization_config(),
    "static_int8_per_channel": lambda: get_symmetric_quantization_config(is_per_channel=True),
    "dynamic_int8": lambda: get_symmetric_quantization_config(is_dynamic=True),
    "dynamic_int8_per_channel": lambda: get_symmetric_quantization_config(
        is_per_channel=True, is_dynamic=True
    ),
    "static_int8_weight_int4": lambda: get_int4_weight_config(is_dynamic=False),
    "dynamic_int8_weight_int4": lambda: get_int4_weight_config(),
    **{
        f"dynamic_int8_weight_int4_group{size}": partial(get_int4_weight_config, size) for size in GROUP_SIZES
    },
}
