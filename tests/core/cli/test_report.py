"""``torchquilt report``: what it writes, and what it asks for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import Files, Run


@pytest.fixture(scope="module")
def quantized(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the files, quantized statically and saved."""
    from torchquilt.cli import main

    path = tmp_path_factory.mktemp("reported") / "quantized.pt2"
    assert (
        main(
            [*map(str, ("quantize", files.model, "--recipe", files.recipe, "--data", files.data, "-o", path))]
        )
        == 0
    )
    return path


def test_a_page_needs_the_model_alone(run: Run, quantized: Path, tmp_path: Path) -> None:
    """It says what it wrote; without data there are no errors and no histograms."""
    page = tmp_path / "report.html"
    answer = run("report", quantized, "-o", page)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == f"{page}: {page.stat().st_size:,} bytes; open it in a browser\n"
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    told = json.loads(run("report", quantized, "-o", page, "--json").out)
    assert (told["compared"], told["histograms"]) == (0, 0)


def test_with_data_it_has_errors_and_histograms(
    run: Run, files: Files, quantized: Path, tmp_path: Path
) -> None:
    """Both models are run on it."""
    page = tmp_path / "report.html"
    answer = run(
        "report", quantized, "--float", files.model, "--data", files.data, "--limit", 2, "-o", page, "--json"
    )
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    assert (told["schema"], told["file"], told["nbytes"]) == (1, str(page), page.stat().st_size)
    assert told["compared"] > 0
    assert told["histograms"] > 0


@pytest.mark.parametrize(
    ("options", "told"),
    [(("--data", "DATA"), "give --float, too"), (("--limit", 2), "--data, which is not given")],
)
def test_options_that_need_another(
    run: Run, files: Files, quantized: Path, tmp_path: Path, options: tuple[object, ...], told: str
) -> None:
    """They are refused before anything is loaded."""
    given = [files.data if option == "DATA" else option for option in options]
    answer = run("report", quantized, *given, "-o", tmp_path / "report.html")
    assert answer.code == 2
    assert told in answer.err
    assert not [*tmp_path.iterdir()]


def test_a_program_says_where_operators_run(run: Run, quantized: Path, tmp_path: Path) -> None:
    """Its report is read, and not the program itself."""
    program = tmp_path / "model.pte"
    assert run("lower", quantized, "-o", program, "--no-verify").code == 0
    page = tmp_path / "report.html"
    answer = run("report", quantized, "--program", program, "-o", page)
    assert (answer.code, answer.err) == (0, "")
    assert "delegated_as_integers" in page.read_text(encoding="utf-8")
