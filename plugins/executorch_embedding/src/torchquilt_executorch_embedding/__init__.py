"""The embedding backend of torchquilt.

``support`` is the table of what it quantizes, ``specs`` the configurations that can be asked for,
``quantizer`` the class that applies them, ``kernels`` the step before lowering, and ``plugin`` what a
listing says of it.

The names below are imported when they are first used: listing the installed backends imports this package,
and must not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

# The imports below say the same to type checkers, and a test holds the two equal.
_MODULE_OF = {
    "SUPPORT": "support",
    "ExecuTorchEmbeddingQuantizer": "quantizer",
    "get_embedding_byte_config": "specs",
    "get_embedding_config": "specs",
    "write_kernels": "kernels",
}

__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:
    from torchquilt_executorch_embedding.kernels import write_kernels as write_kernels
    from torchquilt_executorch_embedding.quantizer import (
        ExecuTorchEmbeddingQuantizer as ExecuTorchEmbeddingQuantizer,
    )
    from torchquilt_executorch_embedding.specs import get_embedding_byte_config as get_embedding_byte_config
    from torchquilt_executorch_embedding.specs import get_embedding_config as get_embedding_config
    from torchquilt_executorch_embedding.support import SUPPORT as SUPPORT
else:
    # Hidden from type checkers: in their eyes a module with a __getattr__ has every attribute.
    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
