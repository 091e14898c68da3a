"""The C++ of the docs: compiled as they say, it runs a package."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from tests.plugins.inductor_x86.models import Small, quantized

import torchquilt as tq

pytestmark = pytest.mark.long

PAGE = (Path(__file__).parents[3] / "docs/inductor.md").read_text(encoding="utf-8")


SIZES = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}


@pytest.fixture(scope="module")
def model() -> torch.fx.GraphModule:
    """A small network for batches of any size, quantized."""
    torch.manual_seed(0)
    return quantized(Small(), (torch.randn(2, 3, 32, 32),), dynamic_shapes=SIZES)


@pytest.fixture(scope="module")
def program(model: torch.fx.GraphModule) -> tq.LoweredProgram:
    """The same as a package."""
    given = torch.ones(2, 3, 32, 32)
    return tq.lower(model, (given,), target="inductor_x86", dynamic_shapes=SIZES, verify=False)


def test_the_program_of_the_docs_runs_a_package(program: tq.LoweredProgram, tmp_path: Path) -> None:
    """It prints the shape and the sum of what the package returns in Python."""
    program.save(tmp_path / "network.pt2")
    (source,) = re.findall(r"```cpp\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "run.cpp").write_text(source)
    (line,) = re.findall(r"^(g\+\+ .*)$", PAGE, re.MULTILINE)
    line = line.replace("$TORCH", str(Path(torch.__file__).parent))
    subprocess.run(shlex.split(line), check=True, cwd=tmp_path)
    told = subprocess.run(["./run", "network.pt2"], check=True, cwd=tmp_path, capture_output=True, text=True)
    shape, _, total = told.stdout.strip().rpartition(" ")
    expected = program.run(torch.ones(2, 3, 32, 32))
    assert shape == f"{[*expected.shape]}"
    assert float(total) == pytest.approx(expected.sum().item(), rel=1e-4)


def test_dynamic_batches_are_run_whatever_was_compiled_for(
    model: torch.fx.GraphModule, program: tq.LoweredProgram
) -> None:
    """Inductor compiles with guesses of sizes; all that were exported are run, and are right."""
    (port,) = program.io.inputs
    assert (port.shape[0].low, port.shape[0].high) == (1, 64)
    for batch in (1, 15, 16, 64):
        x = torch.randn(batch, 3, 32, 32)
        found, expected = program.run(x), model(x)
        assert 20 * torch.log10(expected.norm() / (found - expected).norm()) > 40
