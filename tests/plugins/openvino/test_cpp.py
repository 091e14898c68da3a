"""The C++ of docs/openvino.md, compiled against the libraries of OpenVINO's wheel and run."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
import torch

from plugins.openvino.models import images, program

pytestmark = pytest.mark.long

_PAGE = Path(__file__).parents[3] / "docs/openvino.md"


def test_the_program_of_the_docs_runs_the_file(tmp_path: Path) -> None:
    """It returns what the program returns in Python."""
    model, (image,) = images(batch=1)
    lowered = program(model, (image,))
    lowered.save(tmp_path / "images.xml")
    (tmp_path / "image.bin").write_bytes(image.numpy().tobytes())
    (source,) = re.findall(r"```cpp\n(.*?)```", _PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "run.cpp").write_text(source)
    spec = importlib.util.find_spec("openvino")
    assert spec is not None
    folder = Path((spec.submodule_search_locations or [""])[0])
    (library,) = (folder / "libs").glob("libopenvino.so.*")
    flags = ["-I", str(folder / "include"), str(library), f"-Wl,-rpath,{folder / 'libs'}"]
    command = ["g++", "-std=c++17", "run.cpp", *flags, "-o", "run"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run(
        ["./run", "images.xml", "image.bin"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    found = torch.tensor([float(line) for line in done.stdout.split()])
    torch.testing.assert_close(found, lowered.run(image).flatten())
