"""The quantizer of OpenVINO in ExecuTorch's wheel, with a runtime behind it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import openvino
import pytest


@pytest.mark.long
def test_what_openvinos_quantizer_quantizes_runs_on_executorchs_delegate() -> None:
    """All is in one delegate, which computes what the Q/DQ model does, up to roundings."""
    (library,) = Path(openvino.__file__).parent.glob("libs/libopenvino_c.so.*")
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "plugins.torchao.openvino_programs"],
        env={**os.environ, "PYTHONPATH": path, "OPENVINO_LIB_PATH": str(library)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 4
    for name, delegates, outside, decibels in found:
        assert (delegates, outside) == (1, ["executorch", "getitem"]), name
        assert decibels > 35, name
