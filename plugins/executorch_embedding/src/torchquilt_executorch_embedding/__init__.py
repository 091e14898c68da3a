"""The embedding backend of torchquilt.

``support`` is the table of what it quantizes, ``specs`` the configurations that can be asked for,
``quantizer`` the class that applies them, ``kernels`` what ExecuTorch has for them, ``programs`` the step
before lowering that calls these, and ``plugin`` what a listing says of it.

The names below are imported when they are first used: listing the installed backends imports this package,
and must not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchquilt.backend import lazy_names

# The imports below say the same to type checkers, and a test holds the two equal.
_MODULE_OF = {
    "SUPPORT": "support",
    "ExecuTorchEmbeddingQuantizer": "quantizer",
    "call_kernels": "programs",
    "get_embedding_byte_config": "specs",
    "get_embedding_config": "specs",
}

__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:
    from torchquilt_executorch_embedding.programs import call_kernels as call_kernels
    from torchquilt_executorch_embedding.quantizer import (
        ExecuTorchEmbeddingQuantizer as ExecuTorchEmbeddingQuantizer,
    )
    from torchquilt_executorch_embedding.specs import get_embedding_byte_config as get_embedding_byte_config
    from torchquilt_executorch_embedding.specs import get_embedding_config as get_embedding_config
    from torchquilt_executorch_embedding.support import SUPPORT as SUPPORT
else:
    __getattr__, __dir__ = lazy_names(globals(), _MODULE_OF)
