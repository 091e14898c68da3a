"""A quantized model as a callable of this process."""
from __future__ import annotations

from typing import Any


def compiled(quantized: Any) -> Any:
    raise NotImplementedError
