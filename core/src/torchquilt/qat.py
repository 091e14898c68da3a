"""Quantization-aware training: what is done to a model while it trains.

:func:`torchquilt.prepare_qat_pt2e` makes such a model, and :func:`torchquilt.convert_pt2e` converts it.
"""

from torchquilt.pt2e.qat.control import (
    Schedule,
    disable_fake_quantize,
    enable_fake_quantize,
    freeze_batch_norm,
    freeze_observers,
    learned_scales,
    unfreeze_batch_norm,
    unfreeze_observers,
)
from torchquilt.pt2e.qat.state_file import save_state

__all__ = [
    "Schedule",
    "disable_fake_quantize",
    "enable_fake_quantize",
    "freeze_batch_norm",
    "freeze_observers",
    "learned_scales",
    "save_state",
    "unfreeze_batch_norm",
    "unfreeze_observers",
]
