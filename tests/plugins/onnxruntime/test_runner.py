"""Running programs: threads, copies, times, and a process without torchquilt."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import torchquilt as tq
from plugins.onnxruntime.programs import Block, Network, lowered, normal
from torchquilt_onnxruntime.runner import ONNXRuntimeRunner

IMAGE = (normal(2, 3, 8, 8),)


@pytest.fixture(scope="module")
def program() -> tq.LoweredProgram:
    """A program."""
    torch.manual_seed(0)
    return lowered(Network(), IMAGE)


def test_threads_share_a_program(program: tq.LoweredProgram) -> None:
    """They load it once, and each gets the results of its own inputs."""
    batches = [normal(2, 3, 8, 8, seed=seed) for seed in range(8)]
    expected = [program.run(batch) for batch in batches]
    fresh = ONNXRuntimeRunner(program.buffer)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: fresh.run([batch])[0], batches * 4))
    assert all(torch.equal(one, other) for one, other in zip(found, expected * 4, strict=True))


def test_a_copy_runs_by_itself(program: tq.LoweredProgram) -> None:
    """Also one that was pickled, and of a program that has run."""
    runner = ONNXRuntimeRunner(program.buffer)
    expected = runner.run(IMAGE)[0]
    for one in (copy.deepcopy(runner), pickle.loads(pickle.dumps(runner))):
        assert torch.equal(one.run(IMAGE)[0], expected)


def test_inputs_may_lie_in_memory_as_they_like(program: tq.LoweredProgram) -> None:
    """Channels last, and a view of a larger tensor."""
    expected = program.run(*IMAGE)
    assert torch.equal(program.run(IMAGE[0].to(memory_format=torch.channels_last)), expected)
    assert torch.equal(program.run(IMAGE[0].transpose(2, 3).contiguous().transpose(2, 3)), expected)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "preset"), [("network", "static_int8"), ("block", "static_int8"), ("block", "dynamic_int8")]
)
def test_times_are_those_of_operators_of_the_model(kind: str, preset: str) -> None:
    """At least nine tenths of the time of kernels has a node, layouts and conversions beside included."""
    torch.manual_seed(0)
    module, inputs = (Network(), IMAGE) if kind == "network" else (Block(), (normal(2, 6, 32),))
    program = lowered(module, inputs, preset)
    profile = program.profile(inputs, runs=3)
    assert profile.attributed >= 0.9
    nodes = {node for kernel in profile.kernels for node in kernel.nodes}
    assert {operation.node for operation in program.operations} <= nodes
    assert 0 < sum(kernel.seconds for kernel in profile.kernels) <= 2 * profile.seconds


def test_a_process_without_torchquilt_runs_the_file(program: tq.LoweredProgram, tmp_path: Path) -> None:
    """ONNX Runtime alone is needed."""
    program.save(tmp_path / "model.onnx")
    np.save(tmp_path / "x.npy", IMAGE[0].numpy())
    code = """
        import sys
        sys.modules["torchquilt"] = sys.modules["torch"] = None
        import numpy, onnxruntime
        session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: numpy.load("x.npy")})
        numpy.save("found.npy", found)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), program.run(*IMAGE).numpy())
