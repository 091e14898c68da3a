"""Scales of tokens that are smaller than torch's operator chooses.

Where each token has its own scale, torch's ``choose_qparams_per_token_asymmetric`` chooses none below 2**-23,
which a spec's ``eps`` does not change. It rounds tokens whose values span less than 3e-5 to few integers, or
to zero. Runtimes choose the scale that is needed, so they are nearer to the float model than the quantized
model is. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Tokens with no larger element are computed with a larger one; all others have a scale that torch chooses.
_SMALL = 2.0**-14
#: Their elements times this are in the range in which scales are as they are needed.
_FACTOR = 2.0**60


@contextmanager
def chosen_as_needed() -> Iterator[None]:
    """Choose the scale of each token without a smallest one within the block."""
    import torch

    from torchquilt._internal.torch_private import TorchDispatchMode

    def choose(operator: Any, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        largest = value.abs().amax(-1, keepdim=True)
        factor = torch.where(largest < _SMALL, _FACTOR, 1.0)  # a power of two changes no digit
        scale, zero_point = operator(value * factor, *args, **kwargs)
        return scale / factor, zero_point

    class AsNeeded(TorchDispatchMode):  # type: ignore[no-untyped-call]
        supports_higher_order_operators = True

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            is_choice = getattr(func, "_opname", "") == "choose_qparams_per_token_asymmetric"
            return choose(func, *args, **(kwargs or {})) if is_choice else func(*args, **(kwargs or {}))

    with AsNeeded():  # type: ignore[no-untyped-call]
        yield
