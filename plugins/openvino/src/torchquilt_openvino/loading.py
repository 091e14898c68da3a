"""Importing OpenVINO: without its telemetry, and with an error that says how to install it."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from torchquilt import LoweringError

#: What has to be installed.
REQUIREMENT = "openvino>=2026.4"
_TELEMETRY = "openvino_telemetry"


def openvino() -> Any:
    """The package ``openvino``.

    Its first import would report to its makers that it was imported. It does not where the package for that
    is not installed, so that package is hidden while it is imported.

    Raises:
        LoweringError: it cannot be imported; says how to install it.
    """
    hidden = _TELEMETRY not in sys.modules
    if hidden:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # the import system knows None
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise LoweringError(
            "OpenVINO cannot be imported.",
            expected=REQUIREMENT,
            got=f"{type(error).__name__}: {error}",
            remedy=f"pip install '{REQUIREMENT}'",
        ) from error
    finally:
        if hidden:
            del sys.modules[_TELEMETRY]
