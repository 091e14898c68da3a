"""The example of a decoder, as its user meets it: a command with a printed table and a text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

SCRIPT = Path(__file__).parents[2] / "examples/decoder/decoder.py"


def test_the_program_writes_what_the_quantized_model_does(tmp_path: Path) -> None:
    """With little training GPTQ adds less perplexity than the nearest integers; the tokens are the same."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(SCRIPT), "--steps", "120", "--sequences", "24", "--tokens", "12"]
    done = subprocess.run(
        [*command, "--json", str(figures)], capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same tokens as the quantized model" in done.stdout
    found = json.loads(figures.read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in found["models"]}
    assert list(rows) == ["float", "4 bits, nearest", "4 bits, GPTQ"]
    assert rows["4 bits, nearest"]["added"] > 0
    # With the training of the example it is 0.71, with so little of it 0.94.
    assert rows["4 bits, GPTQ"]["ratio"] < 1
    assert rows["4 bits, GPTQ"]["file"] < rows["float"]["file"]
    assert 0 < found["program"] < rows["float"]["file"]
    assert found["text"]
