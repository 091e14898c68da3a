"""The plugins of this repository pass the kit."""

from __future__ import annotations

from pathlib import Path

import pytest

from testing.kit import run_kit

pytestmark = pytest.mark.long


@pytest.mark.parametrize("backend", ["executorch_embedding", "xnnpack"])
def test_an_own_plugin_passes_the_kit(tmp_path: Path, backend: str) -> None:
    """All that the plugin claims is so, and the table shows each of its rows without a failure."""
    run = run_kit(tmp_path, f"--torchquilt-backend={backend}", "--torchquilt-shapes=2", "-n=2")
    assert run.code == 0, run.text[-8000:]
    table = run.text[run.text.index("what was found") :]
    assert "not checked" not in table
    assert "FAILED" not in table
