"""The file of a program, without a program; and importing OpenVINO."""

from __future__ import annotations

import subprocess
import sys

import pytest

import torchquilt as tq
from torchquilt_openvino.stored import StoredProgram, packed


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
