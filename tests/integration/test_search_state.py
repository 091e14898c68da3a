"""Searches that are interrupted, go on, run out of evaluations, or run on several ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

import torchquilt as tq
from strategies import export, normal
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

X = [normal(8, 8, seed=seed) * normal(8, 8, seed=seed + 50).exp() for seed in range(3)]
DROP = 2e-6


def static() -> XNNPACKQuantizer:
    """Everything static, per channel."""
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))


class Evaluate:
    """Mean squared error against the float model, negative; at one of its calls it does something else."""

    def __init__(
        self, exported: ExportedProgram, at: int = 0, instead: Callable[[], float] = lambda: 0.0
    ) -> None:
        self.float_model = exported.module()
        self.calls, self._at, self._instead = 0, at, instead

    def __call__(self, model: Any) -> float:
        """The metric."""
        self.calls += 1
        if self.calls == self._at:
            return self._instead()
        with torch.no_grad():
            return -sum(float((model(x) - self.float_model(x)).square().mean()) for x in X)


def interrupt() -> float:
    """Ctrl-C."""
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def exported() -> ExportedProgram:
    """Four linears."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(16, 8))
    with torch.no_grad():
        model[2].weight[0] *= 30
    return export(model, X[0])


def search(exported: ExportedProgram, evaluate: Evaluate, **options: Any) -> tq.SearchResult:
    """Search for what drops by no more than the error that all tests allow."""
    return tq.search(exported, static(), X, evaluate, **{"max_drop": DROP, "progress": False, **options})


@pytest.fixture(scope="module")
def whole(exported: ExportedProgram) -> tuple[tq.SearchResult, int]:
    """Result of a search that was not interrupted, and how many models it judged."""
    evaluate = Evaluate(exported)
    found = search(exported, evaluate)
    assert found.is_met
    assert found.is_complete
    assert evaluate.calls == found.evaluations + 1 > 8
    return found, evaluate.calls


def test_two_searches_find_the_same(exported: ExportedProgram, whole: tuple[tq.SearchResult, int]) -> None:
    """To the last bit of each figure."""
    again = search(exported, Evaluate(exported))
    assert again.to_json() == whole[0].to_json()
    assert again.quantizer.intent == whole[0].quantizer.intent


def test_it_goes_on_from_every_evaluation(
    exported: ExportedProgram, whole: tuple[tq.SearchResult, int], tmp_path: Path
) -> None:
    """Interrupted in the k-th it has the best so far; run again it ends as one run does, and repeats none."""
    wanted, calls = whole
    for at in range(1, calls + 1):
        state = tmp_path / str(at)
        evaluate = Evaluate(exported, at, interrupt)
        if at <= 2:  # not even what the user's quantizer decides is known
            with pytest.raises(KeyboardInterrupt):
                search(exported, evaluate, state=state)
        else:
            part = search(exported, evaluate, state=state)
            assert not part.is_complete
            assert "did not come to its end" in str(part)
            assert part.evaluations <= at - 2
            assert part.best.metric >= part.given_metric
        second = Evaluate(exported)
        found = search(exported, second, state=state)
        assert found.to_json() == wanted.to_json()
        assert second.calls == calls - (at - 1)


def test_a_metric_that_fails_ends_the_search_and_loses_nothing(
    exported: ExportedProgram, whole: tuple[tq.SearchResult, int], tmp_path: Path
) -> None:
    """The error says for which variant."""

    def fail() -> float:
        raise ValueError("no such label")

    with pytest.raises(tq.AccuracyError, match="no such label"):
        search(exported, Evaluate(exported, 5, fail), state=tmp_path / "state")
    second = Evaluate(exported)
    assert search(exported, second, state=tmp_path / "state").to_json() == whole[0].to_json()
    assert second.calls == whole[1] - 4


def test_no_more_variants_are_judged_than_allowed(
    exported: ExportedProgram, whole: tuple[tq.SearchResult, int]
) -> None:
    """For every number: the search says that it did not come to its end, or finds what it finds without."""
    for most in range(1, whole[1] + 2):
        evaluate = Evaluate(exported)
        found = search(exported, evaluate, max_evaluations=most)
        assert evaluate.calls - 1 == found.evaluations <= most
        assert found.is_complete == (most >= whole[0].evaluations)
        if found.is_complete:
            assert found.best == whole[0].best


def test_a_state_is_of_one_calibration(exported: ExportedProgram, tmp_path: Path) -> None:
    """Other batches have other ranges, and so other metrics."""
    search(exported, Evaluate(exported), state=tmp_path / "state", max_evaluations=2)
    with pytest.raises(tq.AccuracyError, match="calibration differs"):
        tq.search(exported, static(), X[:1], Evaluate(exported), state=tmp_path / "state", progress=False)


def test_the_recipe_is_the_result(exported: ExportedProgram, whole: tuple[tq.SearchResult, int]) -> None:
    """Read again from text it decides the same, and its model has the metric that was reported."""
    found = whole[0]
    read = tq.Recipe.from_toml(found.recipe.to_toml()).quantizer()
    assert tq.explain(exported, read).to_plain() == tq.explain(exported, found.quantizer).to_plain()
    prepared = tq.calibrate(tq.prepare_pt2e(exported, read), X, progress=False)
    assert Evaluate(exported)(tq.convert_pt2e(prepared)) == found.best.metric
    assert Evaluate(exported)(found.convert(exported, X)) == found.best.metric


def test_a_rule_of_the_users_is_respected(exported: ExportedProgram) -> None:
    """A module that it leaves in float stays there, whatever would help."""
    quantizer = static().set_module_name("2", None)
    found = tq.search(
        exported, quantizer, X, Evaluate(exported), max_drop=DROP, max_macs_float=0, progress=False
    )
    assert not found.is_met
    assert "2" not in found.choices
    assert "2" not in {row.module for row in tq.explain(exported, found.quantizer).quantized}


# ----------------------------------------------------------------------------------------------------------
# Ranks
# ----------------------------------------------------------------------------------------------------------

#: Run on each rank, it writes what it found and how many models it judged, or the error.
PROGRAM = """
import json, os, pathlib, sys
from datetime import timedelta

sys.path[:0] = json.loads(sys.argv[2])
import torch
import torch.distributed as dist
import torchquilt as tq
from tests.integration.test_search_state import Evaluate, X, search, static
from torchquilt_xnnpack import XNNPACKQuantizer

torch.set_num_threads(1)
folder, options = pathlib.Path(sys.argv[1]), json.loads(sys.argv[3])
dist.init_process_group("gloo", timeout=timedelta(seconds=120))
rank = dist.get_rank()
exported = torch.export.load(folder / "model.pt2")


def fail():
    raise ValueError("no such label")


result = {}
evaluate = Evaluate(exported, options["fails at"] if rank == 1 else 0, fail)
try:
    found = search(exported, evaluate, group=dist.group.WORLD, state=folder / "state")
    result["found"] = found.to_json()
    sensitivity = tq.sensitivity(
        exported, static(), X, evaluate, group=dist.group.WORLD, progress=False, state=folder / "other"
    )
    result["sensitivity"] = sensitivity.to_json()
except tq.AccuracyError as error:
    result["error"] = str(error)
result["calls"] = evaluate.calls
(folder / f"{rank}.json").write_text(json.dumps(result))
dist.barrier()
"""


def on_ranks(
    exported: ExportedProgram, folder: Path, number: int = 2, fails_at: int = 0
) -> list[dict[str, Any]]:
    """Results of all ranks."""
    torch.export.save(exported, folder / "model.pt2")
    (folder / "program.py").write_text(PROGRAM)
    here = Path(__file__).parent
    paths = [str(here.parent), str(here.parent.parent)]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
    arguments = [str(folder), json.dumps(paths), json.dumps({"fails at": fails_at})]
    process = subprocess.run(
        [*run, str(folder / "program.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(number)]


def test_ranks_find_what_one_process_finds(
    exported: ExportedProgram, whole: tuple[tq.SearchResult, int], tmp_path: Path
) -> None:
    """On every rank, to the last bit, and each judges a part."""
    first, second = on_ranks(exported, tmp_path)
    assert first["found"] == second["found"] == whole[0].to_json()
    one = tq.sensitivity(exported, static(), X, Evaluate(exported), progress=False)
    assert first["sensitivity"] == second["sensitivity"] == one.to_json()
    assert first["calls"] + second["calls"] == whole[1] + 2 + 2 * len(one.groups)
    assert min(first["calls"], second["calls"]) > len(one.groups)


def test_a_rank_whose_metric_fails_stops_all(
    exported: ExportedProgram, whole: tuple[tq.SearchResult, int], tmp_path: Path
) -> None:
    """Each says which one it was; what was judged is in the file, and one process ends what they began."""
    results = on_ranks(exported, tmp_path, fails_at=2)
    for result in results:
        assert "rank 1" in result["error"]
        assert "no such label" in result["error"]
    again = Evaluate(exported)
    assert search(exported, again, state=tmp_path / "state").to_json() == whole[0].to_json()
    assert again.calls == whole[1] - sum(result["calls"] for result in results) + 1
