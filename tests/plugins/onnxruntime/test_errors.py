"""Files that are refused, models that cannot be lowered, and what the runtime refuses."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import torchquilt as tq
import torchquilt_onnxruntime.optimized as optimized_module
from plugins.onnxruntime.programs import Block, Network, converted, lowered, normal, statuses
from torchquilt.lowering import load

IMAGE = (normal(2, 3, 8, 8),)


@pytest.fixture(scope="module")
def program() -> tq.LoweredProgram:
    """A program."""
    torch.manual_seed(0)
    return lowered(Network(), IMAGE)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1])
def test_files_that_were_cut_off_are_refused(kept: float, program: tq.LoweredProgram, tmp_path: Path) -> None:
    """Nothing of them is run, and the error names the file."""
    end = int(len(program.buffer) * kept) if isinstance(kept, float) else int(kept)
    path = tmp_path / "model.onnx"
    path.write_bytes(program.buffer[:end])
    with pytest.raises(tq.ProgramError, match="no ONNX file, or it is damaged") as caught:
        load(path, target="onnxruntime")
    assert caught.value.path == str(path)


@pytest.mark.parametrize("content", [b"PK\x03\x04 an archive", b"{}", b"\x00" * 64, b"text\n" * 50])
def test_foreign_files_are_refused(content: bytes, tmp_path: Path) -> None:
    """A file of another kind is no program."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(tq.ProgramError, match="no ONNX file, or it is damaged"):
        load(path, target="onnxruntime")


def test_operators_of_somebody_else_are_refused_by_name(program: tq.LoweredProgram, tmp_path: Path) -> None:
    """A file that needs a library names the operators; no library is loaded."""
    model = onnx.load_from_string(program.buffer)
    model.graph.node[0].domain, model.graph.node[0].op_type = "chip", "Convolve"
    model.opset_import.append(onnx.helper.make_opsetid("chip", 1))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(tq.ProgramError, match="chip::Convolve"):
        load(path, target="onnxruntime")


def test_a_program_without_its_report_is_loaded_and_runs(program: tq.LoweredProgram, tmp_path: Path) -> None:
    """Inputs, outputs and their structure are in the file; the target is the one that can read it."""
    path = tmp_path / "model.onnx"
    path.write_bytes(program.buffer)
    found = load(path)
    assert found.target == "onnxruntime"
    assert torch.equal(found.run(*IMAGE), program.run(*IMAGE))


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_told_with_its_pip_line(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target is installed without it: ``pip install --no-deps``."""
    exported = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(tq.LoweringError) as caught:
        tq.lower(exported, target="onnxruntime", backends=[])
    assert str(caught.value.remedy).startswith(f"pip install '{package}>=")


def test_a_dtype_without_kernels_is_named() -> None:
    """The CPU provider computes in no bfloat16."""
    x = torch.ones(1, 2, dtype=torch.bfloat16)
    exported = torch.export.export(nn.Linear(2, 2).bfloat16(), (x,))
    with pytest.raises(tq.LoweringError, match="does not compute in bfloat16") as caught:
        tq.lower(exported, target="onnxruntime", backends=[])
    assert caught.value.node is not None


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_dtypes_with_kernels_are_taken(dtype: torch.dtype) -> None:
    """float16 and float64 run as they were exported."""
    x = normal(3, 8).to(dtype)
    exported = torch.export.export(nn.Linear(8, 8).to(dtype), (x,))
    program = tq.lower(exported, (x,), target="onnxruntime", backends=[], verify=True)
    assert program.run(x).dtype is dtype


class Counter(nn.Module):
    """A model that counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        self.calls.add_(1)  # type: ignore[operator]
        return x + self.calls


@pytest.mark.long
def test_a_model_that_writes_to_its_state_is_refused() -> None:
    """An ONNX file keeps no state, so its second call would be wrong."""
    exported = torch.export.export(Counter(), (torch.ones(2),))
    with pytest.raises(tq.LoweringError, match="writes to its state") as caught:
        tq.lower(exported, target="onnxruntime", backends=[])
    assert "calls" in str(caught.value.node)


class Sorting(nn.Module):
    """An operator that torch has no ONNX for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it."""
        return torch.linalg.eigvalsh(x)


@pytest.mark.long
def test_an_operator_without_onnx_is_named() -> None:
    """The error says which node, and where it is in the code."""
    exported = torch.export.export(Sorting(), (torch.eye(3),))
    with pytest.raises(tq.LoweringError, match="cannot be written as ONNX") as caught:
        tq.lower(exported, target="onnxruntime", backends=[])
    assert "eig" in str(caught.value.node)


@pytest.mark.long
@pytest.mark.parametrize("tells", [True, False], ids=["named", "searched"])
def test_what_the_runtime_refuses_is_left_in_float(tells: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refused operator is found, by its name in the message or by trying; the rest runs as integers."""
    optimize = optimized_module._optimized_by_runtime

    def refusing(buffer: bytes, files: Mapping[str, bytes], **options: bool) -> Any:
        model, beside = optimize(buffer, files, **options)
        if any(node.op_type == "QGemm" and node.name.startswith("linear_1") for node in model.graph.node):
            words = "no kernel for node with name 'linear_1'" if tells else "no kernel"
            raise tq.ProgramError("ONNX Runtime cannot load the program.", backend="CPU", got=words)
        return model, beside

    monkeypatch.setattr(optimized_module, "_optimized_by_runtime", refusing)
    torch.manual_seed(0)
    inputs = (normal(2, 6, 32),)
    model = converted(Block(), inputs)
    program = tq.lower(model, inputs, target="onnxruntime")
    assert program.ledger is not None
    (row,) = (row for row in program.ledger if row.node == "linear_1")
    assert row.lowered is not None
    assert (row.lowered.code, "no kernel" in row.lowered.text) == ("refused_by_delegate", True)
    assert statuses(program)["linear"] == "integer_kernel"
    assert program.verification
    with pytest.raises(tq.LoweringError, match="no kernel"):
        tq.lower(model, inputs, target="onnxruntime", strict=True)
