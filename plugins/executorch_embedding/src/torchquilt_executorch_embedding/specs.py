"""Integers of ExecuTorch's embedding kernels, and configs for them.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torchquilt import QuantizationConfig, QuantizationSpec, UnsupportedConfigError

#: Elements of a row that share a scale and a zero point, where rows are quantized in groups.
GROUP_SIZES = (32, 64, 128)

#: Bits → dtype and range of the integers.
RANGES: Mapping[int, tuple[str, int, int]] = {8: ("uint8", 0, 255), 4: ("int8", -8, 7), 2: ("int8", -2, 1)}


def get_embedding_config(bits: int = 8, group_size: int | None = None) -> QuantizationConfig:
    """Integers of 8, 4 or 2 bits, with a scale and a float zero point for each row, or each group of a row.

    These are the layouts of ExecuTorch's kernels ``quantized_decomposed::embedding_byte``, ``embedding_4bit``
    and ``embedding_2bit``.

    Args:
        bits: of an integer: 8, 4 or 2.
        group_size: elements of a row that share parameters, one of :data:`GROUP_SIZES`; None for the row.

    Raises:
        UnsupportedConfigError: there is no kernel for so many bits.
        SpecError: ``group_size`` is less than 2.
    """
    if bits not in RANGES:
        raise UnsupportedConfigError(
            "ExecuTorch has no embedding kernel for so many bits.",
            expected=" | ".join(map(str, RANGES)),
            got=f"bits={bits}",
        )
    if group_size is None:
        weight = QuantizationSpec(*RANGES[bits], "per_axis", ch_axis=0, zero_point_domain="float")
    else:
        weight = QuantizationSpec(
            *RANGES[bits], "per_group", group_size=group_size, zero_point_domain="float"
        )
    return QuantizationConfig(weight=weight)


def get_embedding_byte_config() -> QuantizationConfig:
    """One uint8 for each element, with a scale and a float zero point for each row of the table."""
    return get_embedding_config()


_NAMES = {8: "byte", 4: "int4", 2: "int2"}

#: Name → function that makes the config. The manifest in ``plugin.py`` lists the same names.
PRESETS: Mapping[str, Callable[[], QuantizationConfig]] = {
    **{f"{name}_per_row": partial(get_embedding_config, bits) for bits, name in _NAMES.items()},
    **{
        f"{name}_group{size}": partial(get_embedding_config, bits, size)
        for bits, name in _NAMES.items()
        for size in GROUP_SIZES
    },
}
