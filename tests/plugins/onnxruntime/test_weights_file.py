"""Models that are too large for one message of ONNX: their weights lie in a file beside it.

What is too large is set to a few kilobytes here.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from torch import nn

import torchquilt as tq
from plugins.onnxruntime.programs import lowered, normal
from torchquilt import lowering
from torchquilt_onnxruntime import weights_file

#: Writing a model as ONNX takes a second, most of it torch's.
pytestmark = pytest.mark.long
INPUT = (normal(3, 64),)


def _program(preset: str) -> tq.LoweredProgram:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 8))
    return lowered(model, INPUT, tq.quantizer("onnxruntime", preset=preset))


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights_file, "LARGEST", 8192)
        yield


@pytest.fixture(scope="module")
def program(_small: None) -> tq.LoweredProgram:
    """A static program of which two of three weights lie beside it."""
    return _program("static_int8_per_channel")


@pytest.fixture
def saved(program: tq.LoweredProgram, tmp_path: Path) -> Path:
    """The program in a folder."""
    program.save(tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def _weights(saved: Path) -> Path:
    (found,) = saved.parent.glob("weights-*.bin")
    return found


@pytest.mark.parametrize("preset", ["dynamic_int8_per_channel", "weight_only_int4"])
def test_programs_of_each_kind_run_with_weights_beside_them(preset: str) -> None:
    """The same kernels compute the same values as in a program of one file."""
    program = _program(preset)
    assert program.files
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights_file, "LARGEST", 2**30)
        whole = _program(preset)
    assert not whole.files
    assert program.operators == whole.operators
    assert torch.equal(program.run(*INPUT), whole.run(*INPUT))


def test_the_message_has_no_large_constant(program: tq.LoweredProgram) -> None:
    """The file has the graph and small constants, the other one the weights; the size is that of both."""
    assert "beside it: weights-" in str(program)
    model = onnx.ModelProto.FromString(program.buffer)
    assert all(len(one.raw_data) < weights_file.SMALLEST for one in model.graph.initializer)
    (content,) = program.files.values()
    assert len(content) >= 64 * 96 * 2
    assert program.size == len(program.buffer) + len(content)


def test_what_was_saved_loads_and_computes_the_same(program: tq.LoweredProgram, saved: Path) -> None:
    """Ledger, values and times as well."""
    loaded = lowering.load(saved)
    assert torch.equal(loaded.run(*INPUT), program.run(*INPUT))
    assert loaded.ledger == program.ledger
    values = loaded.intermediate_values(INPUT)
    assert values.keys() == program.intermediate_values(INPUT).keys() != set()
    assert loaded.profile(INPUT, runs=2).kernels


def test_other_tools_read_the_two_files(program: tq.LoweredProgram, saved: Path) -> None:
    """The reference implementation of ONNX and the checker find the weights beside the model."""
    onnx.checker.check_model(saved)
    reference = onnx.reference.ReferenceEvaluator(onnx.load(saved))
    (name,) = reference.input_names
    (found,) = reference.run(None, {name: INPUT[0].numpy()})
    scale = float(program.run(*INPUT).abs().max()) / 100
    assert np.abs(np.asarray(found) - program.run(*INPUT).numpy()).max() < scale


def test_the_runtime_alone_runs_the_two_files(program: tq.LoweredProgram, saved: Path) -> None:
    """A process without torchquilt makes a session of the path."""
    np.save(saved.with_name("input.npy"), INPUT[0].numpy())
    code = (
        "import sys, numpy, onnxruntime\n"
        "session = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])\n"
        "(one,) = session.get_inputs()\n"
        "(found,) = session.run(None, {one.name: numpy.load(sys.argv[2])})\n"
        "numpy.save(sys.argv[2], found)\n"
        "assert 'torchquilt' not in sys.modules\n"
    )
    argv = [sys.executable, "-c", code, str(saved), str(saved.with_name("input.npy"))]
    subprocess.run(argv, check=True)
    found = torch.from_numpy(np.load(saved.with_name("input.npy")))
    assert torch.equal(found, program.run(*INPUT))


def test_programs_of_one_folder_have_weights_of_their_own(program: tq.LoweredProgram, saved: Path) -> None:
    """The second does not write over the first."""
    other = _program("dynamic_int8_per_channel")
    other.save(saved.with_name("other.onnx"))
    assert torch.equal(lowering.load(saved).run(*INPUT), program.run(*INPUT))
    assert torch.equal(lowering.load(saved.with_name("other.onnx")).run(*INPUT), other.run(*INPUT))


@pytest.mark.parametrize("target", [None, "onnxruntime"])
def test_a_missing_file_is_named(saved: Path, target: str | None) -> None:
    """The error says which, and where it is looked for."""
    weights = _weights(saved)
    weights.unlink()
    saved.with_name("model.onnx.json").unlink()
    with pytest.raises(tq.ProgramError) as caught:
        lowering.load(saved, target)
    assert weights.name in str(caught.value)


def test_a_file_that_is_cut_off_is_refused(saved: Path) -> None:
    """The error says how long it has to be."""
    weights = _weights(saved)
    weights.write_bytes(weights.read_bytes()[:-100])
    saved.with_name("model.onnx.json").unlink()
    with pytest.raises(tq.ProgramError) as caught:
        lowering.load(saved, "onnxruntime")
    assert caught.value.expected is not None
    assert weights.name in caught.value.expected


def test_a_file_with_other_weights_is_refused(saved: Path) -> None:
    """The report knows its digest."""
    weights = _weights(saved)
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    with pytest.raises(tq.ModelError, match="another program") as caught:
        lowering.load(saved)
    assert weights.name in str(caught.value.got)


def test_a_model_from_elsewhere_brings_its_weights(tmp_path: Path) -> None:
    """As onnx saves it, in any name, and without saying how long each tensor is."""
    weight = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    product = onnx.helper.make_node("MatMul", ["x", "weight"], ["y"])
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", size])
        for name, size in (("x", 64), ("y", 8))
    )
    held = onnx.numpy_helper.from_array(weight.numpy(), "weight")
    graph = onnx.helper.make_graph([product], "product", [x], [y], [held])
    opset = onnx.helper.make_opsetid("", 21)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data")
    stored = onnx.ModelProto.FromString(path.read_bytes())
    entries = stored.graph.initializer[0].external_data
    kept = [entry for entry in entries if entry.key == "location"]
    del entries[:]
    entries.extend(kept)
    path.write_bytes(stored.SerializeToString())
    program = lowering.load(path, "onnxruntime")
    (found,) = program.run(INPUT[0])
    assert torch.allclose(found, INPUT[0] @ weight, atol=1e-5)


def test_a_file_of_another_folder_is_not_read(saved: Path) -> None:
    """A model that comes from elsewhere does not read what it likes."""
    model = onnx.ModelProto.FromString(saved.read_bytes())
    for one in model.graph.initializer:
        for entry in one.external_data:
            if entry.key == "location":
                entry.value = "../weights.bin"
    (saved.parent.parent / "weights.bin").write_bytes(_weights(saved).read_bytes())
    saved.write_bytes(model.SerializeToString())
    saved.with_name("model.onnx.json").unlink()
    with pytest.raises(tq.ProgramError, match="another folder"):
        lowering.load(saved, "onnxruntime")
