"""The quantizers of Arm (TOSA, Ethos-U, VGF, Cortex-M), with Arm's tools in a folder of their own."""

from __future__ import annotations

import json
import os
import re
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


#: Model → operators on the NPU of each accelerator, as Vela counts them.
ON_NPU = {
    "residual": {"ethos-u55-128": 15, "ethos-u85-256": 15},
    "pooled head": {"ethos-u55-128": 13, "ethos-u85-256": 11},
    "perceptron": {"ethos-u55-128": 2, "ethos-u85-256": 2},
}


def test_what_is_quantized_for_arm_runs_on_its_tools(tools: Path) -> None:
    """The reference model gives the integers of the Q/DQ model. The ledger says what Vela made for an NPU."""
    found = answer("arm_programs", tools)
    assert [name for name, *_ in found] == list(ON_NPU)
    for name, delegates, others, steps, npus in found:
        assert delegates == 1, name
        assert others == ["executorch_call_delegate", "getitem"], name
        assert steps == 0, name
        for accelerator, (on_npu, on_cpu, kernels, rows, verification) in npus.items():
            assert (on_npu, on_cpu) == (ON_NPU[name][accelerator], 0), name
            assert verification.startswith("not compared: it does not run here"), verification
            assert all(re.fullmatch(r"NPU_OP_[A-Z]+\(int8\) -> int8", kernel) for kernel in kernels), kernels
            check_ledger(rows, is_u55=accelerator == "ethos-u55-128")
            if accelerator == "ethos-u85-256":
                assert len(kernels) == on_npu, name


def check_ledger(rows: list[tuple[str, str, str]], *, is_u55: bool) -> None:
    """Each operator but a pooling on the smaller NPU is in a delegate, whose size and operations are told."""
    for op, code, text in rows:
        if op == "aten.slice_copy.Tensor":  # of all there is
            assert code == "removed"
        elif op == "aten.avg_pool2d.default" and is_u55:
            assert code == "fell_back_to_float"
        else:
            assert code == "delegated_as_integers", (op, text)
            told = re.fullmatch(r"the delegate \((.*) bytes\) computes with integers only: (.*)", text)
            assert told is not None, text
            assert 500 < int(told[1].replace(",", "")) < 5_000
            assert "NPU_OP_CONV" in told[2]


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
