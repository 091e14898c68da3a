"""Packages: what runs where, and that they run where torchquilt is not."""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from tests.plugins.inductor_x86.models import Small, quantized
from torch import nn

import torchquilt as tq
from torchquilt.lowering import load
from torchquilt_inductor_x86 import compiled, target

pytestmark = pytest.mark.long

WITHOUT_TORCHQUILT = """
import sys
for name in ("torchquilt", "torchquilt_inductor_x86", "torchao"):
    sys.modules[name] = None
import torch
run = torch._inductor.aoti_load_package(sys.argv[1])
torch.save(run(torch.load(sys.argv[2])), sys.argv[3])
"""


@pytest.fixture(scope="module")
def model() -> torch.fx.GraphModule:
    """A small network, quantized."""
    torch.manual_seed(0)
    return quantized(Small(), (torch.randn(2, 3, 16, 16),))


@pytest.fixture(scope="module")
def program(model: torch.fx.GraphModule) -> tq.LoweredProgram:
    """The same as a package."""
    torch.manual_seed(1)
    return tq.lower(model, (torch.randn(2, 3, 16, 16),), target="inductor_x86", strict=True)


def test_what_is_quantized_runs_as_integers(program: tq.LoweredProgram) -> None:
    """Each product is a kernel of oneDNN, with what is fused behind it."""
    assert program.ledger is not None
    told = {row.node: row.lowered for row in program.ledger.rows}
    quantized_rows = [row for row in program.ledger.rows if row.is_quantized]
    assert {told[row.node].code for row in quantized_rows} == {"integer_kernel"}
    assert "onednn.qconv_pointwise" in told["relu"].text
    assert "onednn.qconv2d_pointwise.binary" in told["add"].text
    assert "onednn.qlinear_pointwise" in told["gelu"].text
    assert told["max_pool2d"].text.startswith("Inductor moves integers")
    assert told["adaptive_avg_pool2d"].text.startswith("Inductor computes it in float")


def test_it_computes_what_the_model_computes(program: tq.LoweredProgram) -> None:
    """Verified when it was lowered."""
    assert program.verification
    assert program.verification.sqnr > 40


def test_a_package_runs_without_torchquilt(program: tq.LoweredProgram, tmp_path: Path) -> None:
    """A fresh process loads it with torch alone, and computes the same."""
    package, given, made = tmp_path / "small.pt2", tmp_path / "in.pt", tmp_path / "out.pt"
    program.save(package)
    x = torch.randn(2, 3, 16, 16)
    torch.save(x, given)
    subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCHQUILT, package, given, made],
        check=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert torch.equal(torch.load(made), program.run(x))
    assert torch.equal(load(package).run(x), program.run(x))


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_a_package_that_is_cut_off_is_an_error(program: tq.LoweredProgram, kept: int) -> None:
    """It is not loaded."""
    with pytest.raises(tq.ProgramError, match="no AOTInductor package"):
        target.InductorTarget().open(program.buffer[:kept], ())


def test_a_file_of_another_kind_is_an_error(tmp_path: Path) -> None:
    """A package that torch made without us says how to load it; another archive is no package."""
    foreign = tmp_path / "foreign.pt2"
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("archive/data/weights/model.pt", b"1")
    with pytest.raises(tq.ProgramError, match="says nothing of its inputs") as caught:
        load(foreign, target="inductor_x86")
    assert "aoti_load_package" in str(caught.value.remedy)
    foreign.write_bytes(b"ET12 and no archive")
    with pytest.raises(tq.ProgramError, match="no AOTInductor package"):
        load(foreign, target="inductor_x86")


def test_a_package_has_no_lines_of_the_model(program: tq.LoweredProgram) -> None:
    """Kernels tell their times with code in which Inductor quotes the lines that they come from."""
    with zipfile.ZipFile(io.BytesIO(program.buffer)) as archive:
        code = [archive.read(name) for name in archive.namelist() if name.endswith((".cpp", ".so"))]
    assert code
    assert not any(b"tests/plugins/inductor_x86/models.py" in one for one in code)


def test_a_package_that_is_damaged_is_an_error(program: tq.LoweredProgram) -> None:
    """A checksum tells."""
    middle = len(program.buffer) // 2
    damaged = program.buffer[:middle] + bytes(8) + program.buffer[middle + 8 :]
    with pytest.raises(tq.ProgramError, match="damaged"):
        target.InductorTarget().open(damaged, ())


def test_a_model_is_compiled_for_this_process(model: torch.fx.GraphModule) -> None:
    """The callable computes what the quantized model computes, for batches of any size."""
    run = compiled(model, dynamic=False)
    x = torch.randn(2, 3, 16, 16)
    difference = (run(x) - model(x)).norm() / model(x).norm()
    assert difference < 0.01


def test_without_a_compiler_the_error_says_so(
    model: torch.fx.GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what to install."""

    def missing() -> str:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr("torchquilt_inductor_x86.torch_private.check_compiler", missing)
    with pytest.raises(tq.LoweringError, match=r"no C\+\+ compiler") as caught:
        tq.lower(model, (torch.randn(2, 3, 16, 16),), target="inductor_x86")
    assert "g++" in str(caught.value.remedy)


def test_a_number_that_changes_is_refused() -> None:
    """A package takes tensors."""

    class Times(nn.Module):
        def forward(self, x: torch.Tensor, number: int) -> torch.Tensor:
            return x * number

    exported = torch.export.export(
        Times(), (torch.randn(2), 3), dynamic_shapes=(None, torch.export.Dim.DYNAMIC)
    )
    with pytest.raises(tq.LoweringError, match="number that changes"):
        tq.lower(exported, target="inductor_x86", backends=[])
