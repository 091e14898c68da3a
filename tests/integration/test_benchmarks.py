"""The benchmarks run, and write down what they print."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

_FOLDER = Path(__file__).parents[2] / "benchmarks"
COST, FLOW, QAT, RUNTIME, RECOVERY = (
    _FOLDER / f"{name}.py" for name in ("cost", "flow", "qat", "runtime", "recovery")
)


def test_cost_prints_a_table_and_writes_the_same_figures(tmp_path: Path) -> None:
    """A row for each length and kind of rules, all runs of each, and the ratio that decides the status."""
    figures = tmp_path / "cost.json"
    command = [sys.executable, str(COST), "--blocks", "1", "2", "--runs", "2", "--json", str(figures)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    written = json.loads(figures.read_text(encoding="utf-8"))
    table = [line for line in found.stdout.splitlines() if line.startswith("| ")]

    assert found.stderr == ""
    assert len(table) == 1 + len(written["rows"]) == 5
    assert all(len(row["prepare"]) == len(row["convert"]) == 2 for row in written["rows"])
    assert [f"{ratio:.2f}" in found.stdout for ratio in written["ratios"].values()] == [True, True]
    assert found.returncode == (max(written["ratios"].values()) > written["about"]["limit"])


def test_flow_prints_ratios_beside_torchao_and_writes_the_same_figures(tmp_path: Path) -> None:
    """A row for each chain in both tables, all runs of each system, and a status that follows from bounds."""
    figures = tmp_path / "flow.json"
    command = [
        sys.executable,
        str(FLOW),
        "--models",
        "--chains",
        "1",
        "2",
        "--runs",
        "2",
        "--json",
        str(figures),
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    written = json.loads(figures.read_text(encoding="utf-8"))

    assert found.stdout.count("| chain of 1 ") == found.stdout.count("| chain of 2 ") == 3
    for row in written["rows"]:
        assert {name: len(by["convert"]) for name, by in row["systems"].items()} == {
            "torchquilt": 2,
            "torchao": 2,
        }
        assert f"{row['figures']['prepare']:.2f}" in found.stdout
    assert f"{written['a_node']:.2f} times" in found.stdout
    assert found.returncode == ("✗" in found.stdout or written["a_node"] > 1.5)


def test_qat_prints_ratios_beside_torchao_and_writes_the_same_figures(tmp_path: Path) -> None:
    """All runs of each system, the peak of each, and layers whose bits decide the status."""
    figures = tmp_path / "qat.json"
    arguments = ["--models", "small CNN", "--runs", "2", "--steps", "1", "--variants", "1"]
    command = [sys.executable, str(QAT), *arguments, "--json", str(figures)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert figures.exists(), found.stderr
    written = json.loads(figures.read_text(encoding="utf-8"))

    (row,) = written["rows"]
    assert {name: (len(by["prepare"]), len(by["step"])) for name, by in row["systems"].items()} == {
        "float": (0, 2),
        "torchquilt": (2, 2),
        "torchao": (2, 2),
    }
    assert all(by["memory"] > 0 and by["error"] is None for by in row["systems"].values())
    assert f"| {row['figures']['step']:.2f} | " in " ".join(found.stdout.split())
    (layer,) = written["variants"]
    assert layer["is_equal"]
    assert "| equal | " in " ".join(found.stdout.split())
    assert found.returncode == ("✗" in found.stdout)


def test_runtime_prints_ratios_of_three_programs_and_writes_the_same_figures(tmp_path: Path) -> None:
    """All turns of each program, what is in it, and the ratios that are printed; where it was made, too."""
    figures = tmp_path / "runtime.json"
    arguments = ["--models", "u_net", "--repeats", "2", "--json", str(figures)]
    found = subprocess.run(
        [sys.executable, str(RUNTIME), *arguments], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    written = json.loads(figures.read_text(encoding="utf-8"))

    assert written["about"]["command"] == f"python benchmarks/runtime.py {' '.join(arguments)}"
    assert {"torch", "executorch", "torchao", "machine", "runtime_threads"} <= set(written["about"])
    (row,) = written["rows"]
    assert (row["model"], row["mode"], *row["programs"]) == (
        "u_net",
        "static",
        "float",
        "torchao",
        "torchquilt",
    )
    for name, program in row["programs"].items():
        assert len(program["seconds"]) == 2
        assert (program["integer_operators"] > 0) == (name != "float") == (program["sqnr"] is not None)
        assert f"{program['nbytes'] / 1e3:,.0f}" in found.stdout
    for name, ratio in row["ratios"].items():
        assert f"{ratio:.2f} ({row['ratios_of_fastest'][name]:.2f})" in found.stdout


def test_recovery_prints_the_change_of_each_pass_and_writes_the_same_figures(tmp_path: Path) -> None:
    """The default in dB, and what each pass that was applied adds to it."""
    figures = tmp_path / "recovery.json"
    arguments = ["--only", "small class token", "--json", str(figures)]
    found = subprocess.run(
        [sys.executable, str(RECOVERY), *arguments], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    (row,) = json.loads(figures.read_text(encoding="utf-8"))["rows"]
    assert row["applied"]["split_ranges"] > 0 == row["applied"]["default"]
    change = row["decibels"]["split_ranges"] - row["decibels"]["default"]
    assert change > 12
    assert f"{change:+.1f}" in found.stdout
