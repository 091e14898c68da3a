"""Packages that this target needs, with the pip line where one is missing."""

from __future__ import annotations

import importlib
from typing import Any

from torchquilt import LoweringError, MissingRuntimeError

#: Module → what pip calls it, in the version that is needed.
_REQUIREMENTS = {"onnx": "onnx>=1.18", "onnxscript": "onnxscript>=0.7", "onnxruntime": "onnxruntime>=1.23"}


def required(name: str, *, to_run: bool = False) -> Any:
    """Import a module of another package.

    Args:
        name: of the module.
        to_run: whether it is needed to run a program, and not to make one.

    Raises:
        LoweringError: it cannot be imported.
        MissingRuntimeError: likewise, where it is needed to run a program.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        requirement = _REQUIREMENTS[name.partition(".")[0]]
        kind = MissingRuntimeError if to_run else LoweringError
        raise kind(
            f"{name} cannot be imported.",
            expected=requirement,
            got=f"{type(error).__name__}: {error}",
            remedy=f"pip install '{requirement}'",
        ) from error
