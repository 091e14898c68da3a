"""The plugins of this repository pass the kit."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from testing.kit import Run, run_kit
from torchquilt.testing.subject import installed, row_id

pytestmark = pytest.mark.long

#: Their kits take an hour each: ``make test-exhaustive`` runs them whole.
LONG = ("onnxruntime", "openvino")
_SEED, _ROWS = 0, 1


def _check(run: Run) -> None:
    assert run.code == 0, run.text[-8000:]
    table = run.text[run.text.index("what was found") :]
    assert "not checked" not in table
    assert "FAILED" not in table


@pytest.mark.parametrize("backend", ["executorch_embedding", "xnnpack"])
def test_an_own_plugin_passes_the_kit(tmp_path: Path, backend: str) -> None:
    """All that the plugin claims is so, and the table shows each of its rows without a failure."""
    _check(run_kit(tmp_path, f"--torchquilt-backend={backend}", "--torchquilt-shapes=2", "-n=2"))


@pytest.mark.parametrize("backend", LONG)
def test_a_sample_of_rows_of_an_own_plugin_passes_the_kit(tmp_path: Path, backend: str) -> None:
    """The same of a row in each long run, chosen by a seed, of a plugin whose kit takes long."""
    rows = sorted({row_id(row) for row in installed(backend).rows})
    chosen = Random(_SEED).sample(rows, _ROWS)
    asked = " or ".join(f"[{row}" for row in chosen)  # a test of a row is named ``test[row]`` or so
    run = run_kit(tmp_path, f"--torchquilt-backend={backend}", "--torchquilt-shapes=1", "-n=0", f"-k={asked}")
    _check(run)
    assert all("yes" in run.line(row) for row in chosen), run.text[-8000:]


@pytest.mark.exhaustive
@pytest.mark.parametrize("backend", [*LONG, "inductor_x86"])
def test_a_large_own_plugin_passes_the_kit(tmp_path: Path, backend: str) -> None:
    """All that the plugin claims is so, in one complete run."""
    _check(run_kit(tmp_path, f"--torchquilt-backend={backend}", "--torchquilt-shapes=2", "-n=2"))
