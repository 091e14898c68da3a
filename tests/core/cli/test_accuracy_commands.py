"""``torchquilt compare``, ``sensitivity`` and ``search``: what the functions say, exit codes, and Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from torch import nn

import torchquilt as tq
from commands import Answer, Run, recipe_of
from strategies import export, normal
from terminals import Terminal, torchquilt
from torchquilt.artifact import load_program
from torchquilt.data import FileBatches, open_batches


class Tower(nn.Module):
    """Three layers, of which the second has a channel that stretches the range of its input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(8, 8)
        self.body = nn.ModuleDict({"wide": nn.Linear(8, 8), "narrow": nn.Linear(8, 4)})
        with torch.no_grad():
            self.head.weight[3] *= 300

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A layer after the other."""
        return self.body["narrow"](torch.relu(self.body["wide"](torch.relu(self.head(x)))))


@attrs.frozen
class Setting:
    """Files for the commands, and the same as Python values."""

    model: Path
    recipe: Path
    data: Path
    quantized: Path

    @property
    def program(self) -> torch.export.ExportedProgram:
        """The float model."""
        return load_program(self.model)

    @property
    def batches(self) -> FileBatches:
        """The data."""
        return open_batches(self.data, self.program)

    @property
    def asked(self) -> tuple[object, ...]:
        """Arguments that sensitivity and search have in common."""
        return (self.model, "--recipe", self.recipe, "--data", self.data)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """The files; tests do not write to them."""
    root = tmp_path_factory.mktemp("tower")
    found = Setting(root / "float.pt2", root / "recipe.toml", root / "data.npz", root / "quantized.pt2")
    x = normal(4, 16, 8)
    torch.export.save(export(Tower(), x[0]), found.model)
    recipe_of("static_int8").save(found.recipe)
    np.savez(found.data, x=x.numpy())
    prepared = tq.prepare_pt2e(found.program, recipe_of("static_int8").quantizer())
    quantized = tq.convert_pt2e(tq.calibrate(prepared, found.batches))
    tq.save(quantized, found.quantized, (x[0],))
    return found


#: Judges by the noise beside the float model, and leaves a line for each call behind.
METRICS = """
import pathlib, signal
import torch, torchquilt.artifact
FLOAT = torchquilt.artifact.load_program({model!r}).module()
HERE = pathlib.Path(__file__).parent
X = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
print("imported")

def noise(model):
    print("judging")
    with (HERE / "calls").open("a") as file:
        file.write("call\\n")
    if (HERE / "interrupt").exists() and calls() == 3:
        (HERE / "interrupt").unlink()
        signal.raise_signal(signal.SIGINT)
    with torch.no_grad():
        expected, found = FLOAT(X), model(X)
    return float((expected - found).square().mean() / expected.square().mean())

def quality(model):
    return -noise(model)

def calls():
    return len((HERE / "calls").read_text().split())

def pair(model, other):
    return 0.0

class Kept:
    @staticmethod
    def quality(model):
        return quality(model)

text = "no function"
"""


@attrs.frozen
class Metrics:
    """A folder with a module of metrics, which is the current one."""

    folder: Path
    noise: Callable[[object], float]
    quality: Callable[[object], float]

    @property
    def calls(self) -> int:
        """Number of models that were judged since this was asked last."""
        path = self.folder / "calls"
        found = len(path.read_text().split()) if path.exists() else 0
        path.write_text("")
        return found


@pytest.fixture
def metrics(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Metrics]:
    """The module ``metrics`` in the current folder, imported by the commands alone."""
    text = METRICS.format(model=str(setting.model))
    (tmp_path / "metrics.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    before = [*sys.path]
    values: dict[str, object] = {"__file__": str(tmp_path / "metrics.py"), "__name__": "metrics"}
    exec(compile(text, "metrics.py", "exec"), values)
    noise, quality = values["noise"], values["quality"]
    assert callable(noise)
    assert callable(quality)
    yield Metrics(tmp_path, noise, quality)
    sys.modules.pop("metrics", None)
    assert sys.path == before


# --- compare ------------------------------------------------------------------------------------------------


def test_compare_prints_what_the_function_returns(run: Run, setting: Setting) -> None:
    """The text is how a Comparison prints, and the JSON is read as an equal one."""
    expected = tq.compare(setting.program, tq.load(setting.quantized), setting.batches)
    asked = ("compare", setting.model, setting.quantized, "--data", setting.data)
    assert run(*asked) == Answer(0, f"{expected}\n", "")
    assert tq.Comparison.from_json(run(*asked, "--json").out) == expected
    assert len([row for row in expected.operators if row.isolated.sqnr < 100]) > 1
    short = run(*asked, "--top", 1, "--limit", 2).out
    assert expected.operators[0].node in short
    assert re.search(r"… and \d more operators? with an error", short)
    limited = tq.Comparison.from_json(run(*asked, "--json", "--limit", 2).out)
    assert limited.batches == 2
    assert "by itself" not in run(*asked, "--top", 0).out


def test_an_output_below_what_is_asked_for_is_the_answer_no(run: Run, setting: Setting) -> None:
    """The exit code is 1, also with --json, whose answer stays JSON; standard error names the output."""
    (output,) = tq.compare(setting.program, tq.load(setting.quantized), setting.batches).outputs
    asked = ("compare", setting.model, setting.quantized, "--data", setting.data)
    less, more = output.error.sqnr - 0.1, output.error.sqnr + 0.1
    assert run(*asked, "--fail-below", less).code == 0
    answer = run(*asked, "--fail-below", more, "--json")
    assert answer.code == 1
    assert tq.Comparison.from_json(answer.out).outputs == (output,)
    assert answer.err.startswith(f"output {output.name}: ")
    assert run(*asked, "--fail-below", "nan").code == 2


def test_models_that_do_not_belong_together_are_refused(run: Run, setting: Setting, tmp_path: Path) -> None:
    """The quantized model beside itself would have no error, and neither would outputs of other shapes."""
    checks = ("--data", setting.data, "--fail-below", 20)
    answer = run("compare", setting.quantized, setting.quantized, *checks)
    assert (answer.code, answer.out) == (3, "")
    assert "The first model is the float one." in answer.err
    assert run("compare", setting.model, setting.model, *checks).code == 3
    torch.export.save(export(nn.Linear(8, 5), normal(16, 8)), tmp_path / "other.pt2")
    np.savez(tmp_path / "other.npz", input=normal(1, 16, 8).numpy())
    answer = run("compare", tmp_path / "other.pt2", setting.quantized, "--data", tmp_path / "other.npz")
    assert answer.code == 3
    assert "has not the same shape" in answer.err


def test_an_error_about_a_batch_names_its_file(run: Run, tmp_path: Path) -> None:
    """Sizes that are dynamic are left to the model, which here takes at least three rows."""
    shapes = ({0: torch.export.Dim("rows", min=3)},)
    program = torch.export.export(nn.Linear(8, 8).eval(), (normal(4, 8),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "rows.pt2")
    quantized = tq.convert_pt2e(tq.prepare_pt2e(program, recipe_of("dynamic_int8_per_channel").quantizer()))
    tq.save(quantized, tmp_path / "quantized.pt2", (normal(4, 8),))
    (tmp_path / "data").mkdir()
    for name, size in (("a", 4), ("b", 1)):
        np.savez(tmp_path / "data" / f"{name}.npz", input=normal(size, 8).numpy())
    answer = run("compare", tmp_path / "rows.pt2", tmp_path / "quantized.pt2", "--data", tmp_path / "data")
    assert answer.code == 3
    assert f"{tmp_path / 'data' / 'b.npz'}: Batch 1" in answer.err


# --- sensitivity --------------------------------------------------------------------------------------------


def test_sensitivity_prints_what_the_function_returns(run: Run, setting: Setting, metrics: Metrics) -> None:
    """With and without a metric, as text and as JSON."""
    quantizer = recipe_of("static_int8").quantizer()
    for options, keywords in (
        ((), {}),
        (
            ("--evaluate", "metrics:noise", "--minimize"),
            {"evaluate": metrics.noise, "minimize": True},
        ),
    ):
        expected = tq.sensitivity(setting.program, quantizer, setting.batches, **keywords)
        assert run("sensitivity", *setting.asked, *options).out == f"{expected}\n"
        told = run("sensitivity", *setting.asked, *options, "--json")
        assert tq.Sensitivity.from_json(told.out) == expected
        assert told.code == 0
    assert len(expected.groups) == 3


def test_a_sensitivity_goes_on_from_its_state(run: Run, setting: Setting, metrics: Metrics) -> None:
    """Metrics that are known are not measured again; those of another metric or other data are refused."""
    asked = ("sensitivity", *setting.asked, "--state", metrics.folder / "state", "--json")
    first = run(*asked, "--evaluate", "metrics:quality")
    assert metrics.calls == 8  # float, quantized, and each of three alone and left out
    assert run(*asked, "--evaluate", "metrics:quality").out == first.out
    assert metrics.calls == 0
    other = run(*asked, "--evaluate", "metrics:noise", "--minimize")
    assert (other.code, other.out) == (3, "")
    assert "its evaluate differs" in other.err
    fewer = run(*asked, "--evaluate", "metrics:quality", "--limit", 1)
    assert "its calibration differs" in fewer.err


# --- search -------------------------------------------------------------------------------------------------


def test_search_prints_what_the_function_returns_and_writes_its_recipe(
    run: Run, setting: Setting, metrics: Metrics
) -> None:
    """`quantize` with the recipe makes the model whose metric was told."""
    quantizer = recipe_of("static_int8").quantizer()
    recipe, out = metrics.folder / "found.toml", metrics.folder / "out.pt2"
    given = tq.sensitivity(setting.program, quantizer, setting.batches, metrics.quality)
    assert given.quantized_metric is not None
    drop = -given.quantized_metric / 10
    expected = tq.search(setting.program, quantizer, setting.batches, metrics.quality, max_drop=drop)
    asked = ("search", *setting.asked, "--evaluate", "metrics:Kept.quality", "--max-drop", drop)
    answer = run(*asked, "-o", recipe)
    assert (answer.code, answer.out) == (0, f"{expected}\n")
    assert json.loads(run(*asked, "--json").out) == json.loads(expected.to_json())
    assert expected.best.choices
    assert run("quantize", setting.model, "--recipe", recipe, "--data", setting.data, "-o", out).code == 0
    assert metrics.quality(tq.load(out).module()) == expected.best.metric


def test_a_search_saves_the_model_that_it_judged(run: Run, setting: Setting, metrics: Metrics) -> None:
    """With its recovery passes, which a recipe does not say, and with the observer of the search."""
    asked = ("search", *setting.asked, "--evaluate", "metrics:quality", "--observer", "minmax")
    asked += ("--recovery", "equalize", "--max-macs-float", 0, "--max-evaluations", 2, "--json")
    recipe, out = metrics.folder / "found.toml", metrics.folder / "out.pt2"
    answer = run(*asked, "--save", out)
    best = json.loads(answer.out)["best"]
    assert best["recovery"] == ["equalize"]
    assert metrics.quality(tq.load(out).module()) == best["metric"]
    assert "--save makes the model with equalize" in run(*asked, "-o", recipe).err


def test_limits_that_nothing_is_within_are_the_answer_no(
    run: Run, setting: Setting, metrics: Metrics
) -> None:
    """The best variant is told and written all the same."""
    asked = ("search", *setting.asked, "--evaluate", "metrics:noise", "--minimize")
    recipe = metrics.folder / "found.toml"
    answer = run(*asked, "--max-drop", "0", "--max-macs-float", 0, "--output", recipe)
    assert answer.code == 1
    assert "no variant is within all limits" in answer.out
    assert tq.Recipe.load(recipe)
    assert run(*asked, "--max-bytes", 10**6, "--max-evaluations", 1).code == 0


def interrupted(setting: Setting, metrics: Metrics) -> tuple[object, ...]:
    """A search in which Ctrl-C comes while the third model is judged, and which keeps its metrics."""
    (metrics.folder / "interrupt").touch()
    asked = ("search", *setting.asked, "--evaluate", "metrics:quality", "--max-drop", "0.0000001%")
    return (*asked, "--state", metrics.folder / "state", "-o", metrics.folder / "found.toml")


def check_interrupted(metrics: Metrics, code: int, out: str, err: str) -> None:
    """The answer to Ctrl-C, and what is left behind."""
    assert code == 130
    assert "the search did not come to its end" in out
    assert re.search(r"state holds the metrics so far, to go on from\s+interrupted\s+$", err)
    assert set(json.loads((metrics.folder / "state").read_text())["values"]) == {"float", "given"}
    assert tq.Recipe.load(metrics.folder / "found.toml")
    assert metrics.calls == 3


def test_ctrl_c_ends_a_search_with_the_best_so_far(run: Run, setting: Setting, metrics: Metrics) -> None:
    """The exit code is that of an interrupt; the same command goes on, to the same end as without it."""
    asked = interrupted(setting, metrics)
    answer = run(*asked)
    check_interrupted(metrics, answer.code, answer.out, answer.err)
    answer = run(*asked)
    assert answer.code == 0
    resumed = metrics.calls
    assert answer.out == run(*asked[:-4]).out
    assert metrics.calls == resumed + 2


@pytest.mark.long
def test_a_search_on_a_terminal_shows_how_far_it_is(setting: Setting, metrics: Metrics) -> None:
    """Calibration and search have a bar, and Ctrl-C leaves no traceback."""
    path = os.pathsep.join(filter(None, sys.path))
    terminal = Terminal.run(*torchquilt(*interrupted(setting, metrics)), env={"PYTHONPATH": path})
    code = terminal.finish()
    check_interrupted(metrics, code, terminal.words, terminal.words)
    assert "calibrating" in terminal.words
    assert "searching" in terminal.words
    assert "Traceback" not in terminal.words


def test_what_is_printed_by_the_function_is_not_in_the_answer(
    run: Run, setting: Setting, metrics: Metrics
) -> None:
    """Standard output is that of the command, so its JSON stays JSON."""
    asked = ("search", *setting.asked, "--evaluate", "metrics:quality", "--max-evaluations", 1, "--json")
    answer = run(*asked)
    assert json.loads(answer.out)["evaluations"] == 1
    assert answer.err.splitlines() == ["imported", "judging", "judging"]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--evaluate", "metrics"), 2, "not module:function"),
        (("--evaluate", "metrics.py:noise"), 2, "write metrics:noise"),
        (("--evaluate", "metrix:noise"), 2, "There is no module 'metrix'"),
        (("--evaluate", "metrics.more:noise"), 2, "There is no module 'metrics.more'"),
        (("--evaluate", "metrics:noize"), 2, "did you mean 'noise'"),
        (("--evaluate", "metrics:Kept.qualty"), 2, "metrics:Kept has no 'qualty'"),
        (("--evaluate", "metrics:text"), 2, "is no function: it is of type str"),
        (("--evaluate", "metrics:pair"), 2, "(model, other) cannot be called with a model"),
        (("--evaluate", "broken:noise"), 3, "The module broken fails as it is imported"),
        (("--evaluate", "leaving:noise"), 3, "SystemExit: 0"),
        (("--max-drop", "1 percent"), 2, "'1 percent' is neither"),
        (("--max-drop", "-1"), 2, "'-1' is neither"),
        (("--max-latency-ms", "3"), 2, "--max-latency-ms and --target go together"),
        (("--target", "executorch"), 2, "--max-latency-ms and --target go together"),
        (("--target", "executorhc", "--max-latency-ms", "3"), 3, "did you mean 'executorch'"),
        (("--recovery", "prayer"), 3, "There is no recovery pass 'prayer'"),
        (("--state", "metrics.py"), 3, "metrics.py is no state of a search"),
        (("--state", "found", "--output", "found"), 2, "Another option names the same file"),
        (("--output", "missing/found.toml"), 2, "There is no folder"),
    ],
)
def test_what_is_wrong_is_told_before_a_model_is_judged(
    run: Run, setting: Setting, metrics: Metrics, options: tuple[str, ...], code: int, said: str
) -> None:
    """A search takes hours, and a mistake in its last option must not cost them."""
    (metrics.folder / "broken.py").write_text("import missing_library\n")
    (metrics.folder / "leaving.py").write_text("raise SystemExit(0)\n")
    function = () if "--evaluate" in options else ("--evaluate", "metrics:quality")
    answer = run("search", *setting.asked, *function, *options)
    assert (answer.code, answer.out) == (code, "")
    assert said in " ".join(answer.err.split())
    assert metrics.calls == 0


@pytest.mark.parametrize("option", [("--minimize",), ("--state", "state")])
def test_options_about_a_metric_need_one(run: Run, setting: Setting, option: tuple[str, ...]) -> None:
    """They would have no effect, and the reader would not know."""
    answer = run("sensitivity", *setting.asked, *option)
    assert answer.code == 2
    assert f"{option[0]} is about --evaluate" in answer.err
