"""Files of OpenVINO programs: damaged and foreign ones, and a process that has OpenVINO alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchquilt as tq
from plugins.openvino.models import images, program
from torchquilt.lowering import load
from torchquilt_openvino.stored import StoredProgram, packed


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


@pytest.mark.parametrize(
    "text", [b"PK\x03\x04", b'<?xml version="1.0"?>\n<net name="x"></net>', b"ET12" * 40]
)
def test_a_foreign_file_is_refused(text: bytes) -> None:
    """Files of others are told from ours by their first lines."""
    with pytest.raises(tq.ProgramError, match="not a program of torchquilt for OpenVINO"):
        StoredProgram.of(text)


def test_offsets_count_from_the_beginning_of_the_file() -> None:
    """Weights stand behind the XML, aligned, whatever the length of the offsets."""
    for count in (1, 7, 40):
        layers = "".join(f'<data element_type="u8" offset="{number}" size="1" />' for number in range(count))
        weights = bytes(range(1, count + 1))
        file = packed(f'<?xml version="1.0"?>\n<net>{layers}</net>\n'.encode(), weights)
        stored = StoredProgram.of(file)
        offsets = [int(part.split(b'"')[0]) for part in stored.xml.split(b'offset="')[1:]]
        assert bytes(file[offset] for offset in offsets) == weights
        assert offsets[0] % 64 == 0
        assert file[len(stored.xml)] == 0


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
    import numpy as np

    np.save(tmp_path / "batch.npy", batch.numpy())
    command = [sys.executable, "-c", _ALONE, str(tmp_path / "model.xml"), str(tmp_path / "batch.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), lowered.run(batch))


_TELEMETRY = """
import sys
import torchquilt_openvino.loading as loading
ov = loading.openvino()
import openvino.tools.ovc.telemetry_utils as used
print(used.tm.__name__, "openvino_telemetry" in sys.modules, hasattr(ov, "convert_model"))
"""


def test_importing_openvino_reports_to_nobody() -> None:
    """OpenVINO takes its stand-in for telemetry, as it does where that is not installed."""
    done = subprocess.run([sys.executable, "-c", _TELEMETRY], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "False", "True"], done.stderr


_MISSING = """
import sys
sys.modules["openvino"] = None
import torchquilt as tq
import torchquilt_openvino.target as target
try:
    target.OpenVINOTarget().open(b"")
except tq.LoweringError as error:
    print(error.remedy)
"""


def test_a_missing_openvino_is_an_error_with_the_pip_line() -> None:
    """It says what to install."""
    done = subprocess.run([sys.executable, "-c", _MISSING], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "pip install 'openvino>=2026.4'", done.stderr
