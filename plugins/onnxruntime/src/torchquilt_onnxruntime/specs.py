"""Integers that ONNX Runtime computes with, and configs for them.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torchquilt import QuantizationConfig, QuantizationSpec

#: A scale of weights is for so many of them, where they are quantized in groups.
GROUP_SIZES = (16, 32, 64, 128)

# The kernels multiply with scales in float32, so they take scales far below these. Bounds of their own keep
# products of two scales, which are those of biases, above the smallest normal number of float32.
#: Calibration chooses no scale below this one.
SMALLEST_SCALE = 2.0**-60

# Processors with AVX2 or AVX512, but without VNNI, add two products of an activation (0 to 255) and a weight
# in 16 bits, and cut the sum off: 255 * 127 * 2 does not fit, 255 * 64 * 2 does.
#: The largest weight whose products fit on every processor.
LARGEST_REDUCED_WEIGHT = 64


def get_default_onnxruntime_quantization_config(
    is_per_channel: bool = True,
    is_qat: bool = False,
    is_dynamic: bool = False,
    reduce_range: bool = True,
) -> QuantizationConfig:
    """A config for int8 on ONNX Runtime's CPU kernels: affine uint8 activations, symmetric int8 weights.

    Args:
        is_per_channel: a weight has one scale for each output channel instead of one in all.
        is_qat: meant for quantization-aware training, see :func:`torchquilt.prepare_qat_pt2e`.
        is_dynamic: activations are quantized when the model runs, with one scale for the whole tensor;
            outputs stay float32.
        reduce_range: weights are between -64 and 64. On x86 processors without VNNI the kernels add
            products in 16 bits, and larger weights can overflow: a sum may be off by half. Without it,
            such processors need the session option ``session.x64quantprecision=1``, with which the kernels
            are right and slower. Processors with VNNI, and ARM, are right either way. The machine that runs
            a model need not be the one that quantizes it, so the default is right everywhere.
    """
    largest = LARGEST_REDUCED_WEIGHT if reduce_range else 127
    activation = QuantizationSpec("uint8", is_dynamic=is_dynamic, eps=SMALLEST_SCALE)
    weight = QuantizationSpec(
        "int8",
        -largest,
        largest,
        "per_axis" if is_per_channel else "per_tensor",
        symmetric=True,
        ch_axis=0 if is_per_channel else None,
        eps=SMALLEST_SCALE,
    )
    return QuantizationConfig(
        input_activation=activation,
        output_activation=None if is_dynamic else activation,
        weight=weight,
        is_qat=is_qat,
    )


def get_weight_only_config(bits: int = 8, group_size: int | None = None) -> QuantizationConfig:
    """A config for linear layers whose weights alone are integers, symmetric.

    Args:
        bits: 8 or 4.
        group_size: the weights of an output channel have a scale for each run of so many (one of
            :data:`GROUP_SIZES`), instead of one in all.

    Raises:
        SpecError: ``bits`` is neither 8 nor 4, or ``group_size`` is less than 2.
    """
    from torchquilt.errors import SpecError

    ranges = {8: (-127, 127), 4: (-8, 7)}
    if bits not in ranges:
        raise SpecError(
            "ONNX Runtime has no kernel for weights of so many bits.",
            field="bits",
            expected="8 or 4",
            got=f"bits={bits!r}",
            remedy="take 4 bits with a group_size for the smallest files",
        )
    weight = QuantizationSpec(
        "int8",
        *ranges[bits],
        "per_axis" if group_size is None else "per_group",
        symmetric=True,
        ch_axis=0 if group_size is None else None,
        group_size=group_size,
        eps=SMALLEST_SCALE,
    )
    return QuantizationConfig(weight=weight)


#: Name → function that makes the config. The manifest in ``plugin.py`` lists the same names.
PRESETS: Mapping[str, Callable[[], QuantizationConfig]] = {
    "static_int8": lambda: get_default_onnxruntime_quantization_config(is_per_channel=False),
    "static_int8_per_channel": lambda: get_default_onnxruntime_quantization_config(),
    "dynamic_int8": lambda: get_default_onnxruntime_quantization_config(
        is_per_channel=False, is_dynamic=True
    ),
    "dynamic_int8_per_channel": lambda: get_default_onnxruntime_quantization_config(is_dynamic=True),
    "weight_only_int8": lambda: get_weight_only_config(),
    "weight_only_int4": lambda: get_weight_only_config(bits=4, group_size=32),
}
