"""Files of OpenVINO programs: damaged and foreign ones, and a process that has OpenVINO alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import torchquilt as tq
from plugins.openvino.models import images, program
from torchquilt.lowering import load
from torchquilt_openvino.stored import StoredProgram

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def lowered() -> tq.LoweredProgram:
    """A program."""
    return program(*images())


@pytest.mark.parametrize("length", [0, 10, 150, 5000, -1])
def test_a_file_that_is_cut_off_is_refused(lowered: tq.LoweredProgram, tmp_path: Path, length: int) -> None:
    """The error says that it is, before OpenVINO sees it."""
    path = tmp_path / "model.xml"
    path.write_bytes(lowered.buffer[:length])
    with pytest.raises(tq.ProgramError, match=r"cut off|not a program of torchquilt for OpenVINO") as error:
        load(path, target="openvino")
    assert error.value.path == str(path)


@pytest.mark.parametrize("place", [170, 3000, -10])
def test_a_damaged_file_is_refused(lowered: tq.LoweredProgram, place: int) -> None:
    """A bit anywhere is enough."""
    damaged = bytearray(lowered.buffer)
    damaged[place] ^= 1
    with pytest.raises(tq.ProgramError, match="damaged"):
        StoredProgram.of(bytes(damaged))


def test_a_saved_program_comes_back(lowered: tq.LoweredProgram, tmp_path: Path) -> None:
    """With its report, and without it."""
    batch = images()[1][0]
    lowered.save(tmp_path / "model.xml")
    found = load(tmp_path / "model.xml")
    assert found.ledger == lowered.ledger
    assert torch.equal(found.run(batch), lowered.run(batch))
    (tmp_path / "model.xml.json").unlink()
    bare = load(tmp_path / "model.xml", target="openvino")
    assert torch.equal(bare.run(batch), lowered.run(batch))


_ALONE = """
import sys
sys.modules["openvino_telemetry"] = None
import json
import numpy as np
import openvino as ov
for name in ("torch", "torchquilt"):
    assert name not in sys.modules
core = ov.Core()
model = core.read_model(sys.argv[1], sys.argv[1])
model = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
print(json.dumps(model(np.load(sys.argv[2]))["output_0"].tolist()))
"""


def test_openvino_alone_runs_the_file(lowered: tq.LoweredProgram, tmp_path: Path) -> None:
    """In a process that imports neither torch nor torchquilt, by the path given twice."""
    batch = images()[1][0]
    (tmp_path / "model.xml").write_bytes(lowered.buffer)
    np.save(tmp_path / "batch.npy", batch.numpy())
    command = [sys.executable, "-c", _ALONE, str(tmp_path / "model.xml"), str(tmp_path / "batch.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), lowered.run(batch))
