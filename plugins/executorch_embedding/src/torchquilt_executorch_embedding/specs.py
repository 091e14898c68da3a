"""The numbers of ExecuTorch's byte embeddings, and the configs made of them.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torchquilt import QuantizationConfig, QuantizationSpec


def get_embedding_byte_config() -> QuantizationConfig:
    """One uint8 for each element, with a scale and a float zero point for each row of the table.

    This is the layout of ExecuTorch's ``quantized_decomposed::embedding_byte`` kernel.
    """
    weight = QuantizationSpec("uint8", granularity="per_axis", ch_axis=0, zero_point_domain="float")
    return QuantizationConfig(weight=weight)


#: Name → function that makes the config. The manifest in ``plugin.py`` lists the same names.
PRESETS: Mapping[str, Callable[[], QuantizationConfig]] = {"byte_per_row": get_embedding_byte_config}
