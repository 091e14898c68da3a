"""Entry point of pytest: loads the plugin of the conformance kit where the kit is asked for.

pytest imports it in every run where torchquilt is installed, and reads options before it looks for what
``--pyargs`` names. So it tells by the arguments, and imports nothing of the kit for other projects.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

_KIT = "torchquilt.testing"


def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Load the plugin, which declares the options, before options are read."""
    if is_asked_for(args):
        early_config.pluginmanager.import_plugin(f"{_KIT}.plugin")


def is_asked_for(args: Iterable[str]) -> bool:
    """Whether arguments name the kit, by its package or a folder of it, or have one of its options."""
    return any(
        arg.startswith("--torchquilt-") or _KIT in arg.replace("/", ".").replace("\\", ".") for arg in args
    )
