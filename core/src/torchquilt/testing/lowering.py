"""Type of a function that lowers a quantized model and runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch.fx import GraphModule

#: Lowers a quantized model, runs it, and returns its outputs. Raises where a part does not run as integers.
Lowering: TypeAlias = "Callable[[GraphModule, tuple[Any, ...]], Any]"
