"""The quantizers of Arm (TOSA, Ethos-U, VGF, Cortex-M), with ``tosa-tools`` in a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plugins.torchao.differences import DIFFERENCES
from plugins.torchao.models import MODELS
from plugins.torchao.vendors import OF_ARM

TESTS = Path(__file__).parents[2]
#: It pins older versions of packages that the others need newer, and uses none of these here.
TOSA_TOOLS = "tosa-tools==2026.2.1"


@pytest.mark.long
def test_arms_quantizers_do_what_they_do_in_torchaos_flow(tmp_path: Path) -> None:
    """Programs are the same, or the difference is named; outputs agree by 100 dB in any case."""
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), TOSA_TOOLS]
    subprocess.run([sys.executable, *install], check=True, timeout=300)
    path = os.pathsep.join([str(TESTS), *sys.path, str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-m", "plugins.torchao.arm_comparison"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == len(OF_ARM) * len(MODELS)
    different = {(vendor, name) for vendor, name, is_same, _ in found if not is_same}
    assert different == {pair for pair in DIFFERENCES if pair[0] in OF_ARM}
    assert min(agreement for *_, agreement in found) >= 100
