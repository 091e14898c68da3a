"""Calls of the kit, and what it says when it cannot do what it is asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from testing.kit import run_kit

_USAGE_ERROR = 4


def test_it_has_to_be_told_what_to_test(tmp_path: Path) -> None:
    """Without a backend nothing is collected, and the error names the option."""
    run = run_kit(tmp_path)
    assert run.code != 0
    assert run.text.count("E   _pytest.outcomes.Exit: Say what to test: --torchquilt-backend=NAME") == 1
    assert run.text.count("ERROR  ") == 1


def test_a_backend_that_is_not_installed_is_named(tmp_path: Path) -> None:
    """A misspelt backend is a usage error with the nearest name."""
    run = run_kit(tmp_path, "--torchquilt-backend=xnnpak")
    assert run.code == _USAGE_ERROR
    assert "did you mean 'xnnpack'?" in run.text


def test_a_class_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A reference that leads nowhere is a usage error."""
    run = run_kit(tmp_path, "--torchquilt-quantizer=false_tables:Missing")
    assert run.code == _USAGE_ERROR
    assert "There is no quantizer at 'false_tables:Missing'" in run.text


def test_a_class_without_a_table_claims_nothing(tmp_path: Path) -> None:
    """A class without a support table is refused instead of passing for want of rows."""
    run = run_kit(tmp_path, "--torchquilt-quantizer=false_tables:NoTable")
    assert run.code == _USAGE_ERROR
    assert "NoTable claims nothing that could be tested" in run.text


def test_a_backend_and_a_class_are_too_much(tmp_path: Path) -> None:
    """The two ways to say what is tested exclude each other."""
    run = run_kit(tmp_path, "--torchquilt-backend=xnnpack", "--torchquilt-quantizer=false_tables:Honest")
    assert run.code == _USAGE_ERROR
    assert "not both" in run.text


@pytest.mark.long
def test_a_row_without_a_model_says_what_to_supply(tmp_path: Path) -> None:
    """An operator that the kit cannot call fails one test, which names the attribute to write."""
    run = run_kit(tmp_path, "--torchquilt-quantizer=false_tables:Supplied", "-k", "tanh")
    assert run.failed == {"test_a_row_annotates[tanh-static]"}
    assert "Supplied.conformance_examples = {'tanh': function}" in run.text
    assert run.line("tanh-static")[1:3] == ["FAILED", "-"]


@pytest.mark.long
def test_a_supplied_model_is_used(tmp_path: Path) -> None:
    """With a model supplied for the same row, it passes."""
    run = run_kit(tmp_path, "--torchquilt-quantizer=false_tables:WithExample", "-k", "tanh")
    assert run.code == 0, run.text
    assert run.line("tanh-static")[1:3] == ["yes", "yes"]


@pytest.mark.long
def test_lowering_that_nobody_checked_is_said_not_to_be(tmp_path: Path) -> None:
    """A target without a checker is neither a pass nor a failure in the table."""
    run = run_kit(tmp_path, "--torchquilt-quantizer=false_tables:Honest", "-k", "annotates")
    assert run.line("linear-static")[-1] == "toy: not checked"
    assert run.line("add-static")[-1] == "claims none"


@pytest.mark.long
def test_the_table_is_printed_with_several_workers(tmp_path: Path) -> None:
    """The findings of workers of pytest-xdist come together in one table."""
    run = run_kit(
        tmp_path, "--torchquilt-quantizer=false_tables:Honest", "-n", "2", "-k", "annotates or refused"
    )
    assert run.code == 0, run.text
    assert [run.line(row)[i] for row in ("linear-static", "add-static") for i in (1, 5)] == ["yes"] * 4


def test_a_run_of_pytest_without_the_kit_loads_no_torch(tmp_path: Path) -> None:
    """The plugin is in every run of pytest where torchquilt is installed, and costs it nothing."""
    (tmp_path / "test_own.py").write_text("import sys\ndef test_it(): assert 'torch' not in sys.modules\n")
    command = [sys.executable, "-m", "pytest", "-p", "torchquilt.testing.plugin", "-q", "test_own.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "what " not in done.stdout
