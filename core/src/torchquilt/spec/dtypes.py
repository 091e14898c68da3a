"""Integer dtypes: their names, their ranges, and a stand-in where torch is not loaded.

Importing this module does not import torch.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import attrs

from torchquilt.errors import SpecError

if TYPE_CHECKING:
    pass


#: Smallest and largest number of each integer type that a spec can name.
INTEGER_RANGES: dict[str, tuple[int, int]] = {
    "int8": (-(2**7), 2**7 - 1),
    "uint8": (0, 2**8 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "uint16": (0, 2**16 - 1),
    "int32": (-(2**31), 2**31 - 1),
}


def dtype_name(dtype: object) -> str:
    """``torch.int8`` or ``"int8"`` as ``"int8"``; asks nothing of torch."""
    return str(dtype).removeprefix("torch.")


@attrs.frozen
class NamedDtype:
    """Stands in for a dtype, so that a spec can be made and checked where torch is not loaded."""

    name: str

    def __str__(self) -> str:
        return f"torch.{self.name}"

    __repr__ = __str__


_named_dtypes = ContextVar("_named_dtypes", default=False)


@contextlib.contextmanager
def named_dtypes() -> Iterator[None]:
    """Let specs that are made in the block from the name of a dtype hold a :class:`NamedDtype`.

    Making one imports torch otherwise. Such specs can be looked at and compared with each other, and answer
    what a support row takes; no model can be quantized with them.
    """
    token = _named_dtypes.set(True)
    try:
        yield
    finally:
        _named_dtypes.reset(token)


def to_torch_dtype(dtype: object) -> Any:
    """The dtype of a name; a stand-in within :func:`named_dtypes`. What is no name stays as it is."""
    if isinstance(dtype, str) and dtype_name(dtype) in INTEGER_RANGES:
        name = dtype_name(dtype)
        return NamedDtype(name) if _named_dtypes.get() else getattr(importlib.import_module("torch"), name)
    return dtype


def check_integer_type(field: str, dtype: object) -> tuple[int, int]:
    """The smallest and the largest integer of a dtype.

    Raises:
        SpecError: it is no integer dtype that a spec can name.
    """
    try:
        return INTEGER_RANGES[dtype_name(dtype)]
    except KeyError:
        raise SpecError(
            "A quantized tensor needs an integer dtype.",
            field=field,
            expected=" | ".join(f"torch.{name}" for name in INTEGER_RANGES),
            got=f"{field}={dtype!r}",
            remedy="pass one of these; fewer bits are said by quant_min and quant_max "
            "(int4 is dtype=torch.int8, quant_min=-8, quant_max=7)",
        ) from None
