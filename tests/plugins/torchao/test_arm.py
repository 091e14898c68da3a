"""The quantizers of Arm (TOSA, Ethos-U, VGF, Cortex-M), with Arm's tools in a folder of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plugins.torchao.differences import DIFFERENCES
from plugins.torchao.models import MODELS
from plugins.torchao.vendors import OF_ARM

pytestmark = pytest.mark.long

TESTS = Path(__file__).parents[2]
#: They pin older versions of packages that the other tests need newer, and use none of these here.
TOOLS = ("tosa-tools==2026.2.1", "ethos-u-vela==5.2.0")


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Arm's tools."""
    folder = tmp_path_factory.mktemp("tools")
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *TOOLS]
    subprocess.run([sys.executable, *install], check=True, timeout=300)
    return folder


def answer(module: str, tools: Path) -> Any:
    """The JSON that a module of these tests prints last, in a process that finds Arm's tools."""
    path = os.pathsep.join([str(TESTS), *sys.path, str(tools)])
    done = subprocess.run(
        [sys.executable, "-m", f"plugins.torchao.{module}"],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tools,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_arms_quantizers_do_what_they_do_in_torchaos_flow(tools: Path) -> None:
    """Programs are the same, or the difference is named; outputs agree by 100 dB in any case."""
    found = answer("arm_comparison", tools)
    assert len(found) == len(OF_ARM) * len(MODELS)
    different = {(vendor, name) for vendor, name, is_same, _ in found if not is_same}
    assert different == {pair for pair in DIFFERENCES if pair[0] in OF_ARM}
    assert min(agreement for *_, agreement in found) >= 100


def test_what_is_quantized_for_tosa_runs_on_its_reference_model(tools: Path) -> None:
    """All is in one delegate, which gives the integers of the Q/DQ model; Vela compiles it for an Ethos-U."""
    found = answer("arm_programs", tools)
    assert len(found) == 3
    for name, delegates, others, steps, compiled, on_npu, on_cpu in found:
        assert delegates == 1, name
        assert others == ["executorch_call_delegate", "getitem"], name
        assert steps == 0, name
        assert 500 < compiled < 10_000, name
        assert (on_npu, on_cpu) == ({"residual": 15, "pooled head": 13, "perceptron": 2}[name], 0)


def test_what_is_quantized_for_cortex_m_runs_on_its_operators(tools: Path) -> None:
    """All but reshapes is computed by ``cortex_m`` operators, within a step of the Q/DQ model."""
    found = {name: rest for name, *rest in answer("cortex_m_programs", tools)}
    around = ["dequantize_per_tensor", "quantize_per_tensor"]
    expected = {
        "perceptron": ([*around, "quantized_linear"], 0),
        "residual": ([*around, "quantized_add", "quantized_conv2d"], 0),
        "pooled head": ([*around, "quantized_avg_pool2d", "quantized_conv2d", "quantized_linear"], 1),
        "shapes": ([*around, "quantized_conv2d", "quantized_linear", "transpose"], 1),
    }
    assert {name: (kernels, others) for name, (kernels, others, _) in found.items()} == expected
    assert all(steps < 1.001 for *_, steps in found.values())
    assert found["perceptron"][-1] == 0
