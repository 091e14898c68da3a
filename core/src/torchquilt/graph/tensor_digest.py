"""The digest of a tensor's elements. Importing this module does not import torch."""

from __future__ import annotations

import ctypes
import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 of the elements in row-major order."""
    plain = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()
    size = plain.numel() * plain.element_size()
    # A view of the memory: neither numpy nor a copy of the weight is needed for it.
    view = (ctypes.c_ubyte * size).from_address(plain.data_ptr()) if size else b""
    return hashlib.sha256(view).hexdigest()
