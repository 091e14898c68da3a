"""Sensitivity: metrics of each group alone and left out, against a plain loop, and the file of them."""

from __future__ import annotations

import json
import math
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

X = [normal(8, 8, seed=seed) for seed in range(3)]
STATIC = get_symmetric_quantization_config(is_per_channel=True)


def static() -> XNNPACKQuantizer:
    """Everything static, per channel."""
    return XNNPACKQuantizer().set_global(STATIC)


@pytest.fixture(scope="module")
def exported() -> ExportedProgram:
    """Two linears, the second of which has a large channel."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    with torch.no_grad():
        model[2].weight[0] *= 60
    return export(model, X[0])


class Evaluate:
    """Mean squared error against the float model, negative; counts its calls, and may do something else."""

    def __init__(
        self, exported: ExportedProgram, instead: dict[int, Callable[[], Any]] | None = None
    ) -> None:
        self.float_model = exported.module()
        self.calls = 0
        self.instead = instead or {}

    def __call__(self, model: Any) -> float:
        """The metric."""
        self.calls += 1
        if self.calls in self.instead:
            found: float = self.instead[self.calls]()
            return found
        with torch.no_grad():
            return -sum(float((model(x) - self.float_model(x)).square().mean()) for x in X)


def interrupt() -> float:
    """Ctrl-C."""
    raise KeyboardInterrupt


def by_hand(exported: ExportedProgram, quantizer: object) -> float:
    """The metric of what a user makes of a quantizer."""
    prepared = tq.calibrate(tq.prepare_pt2e(exported, quantizer), X, progress=False)
    return Evaluate(exported)(tq.convert_pt2e(prepared))


def test_metrics_are_those_of_a_plain_loop(exported: ExportedProgram) -> None:
    """A rule that leaves a module in float, and one that leaves all others."""
    found = tq.sensitivity(exported, static(), X, Evaluate(exported), progress=False)
    assert found.float_metric == 0
    assert found.quantized_metric == by_hand(exported, static())
    assert {group.name for group in found.groups} == {"0", "2"}
    for name, other in (("0", "2"), ("2", "0")):
        assert found[name].left_out == by_hand(exported, static().set_module_name(name, None))
        assert found[name].alone == by_hand(exported, static().set_module_name(other, None))
    assert found.groups[0].left_out == max(group.left_out for group in found.groups if group.left_out)
    assert tq.Sensitivity.from_json(found.to_json()) == found


def test_where_smaller_is_better_the_order_turns(exported: ExportedProgram) -> None:
    """The group without which the metric is smallest comes first."""
    evaluate = Evaluate(exported)
    found = tq.sensitivity(exported, static(), X, lambda m: -evaluate(m), minimize=True, progress=False)
    assert found.groups[0].left_out == min(group.left_out or 0.0 for group in found.groups)
    straight = tq.sensitivity(exported, static(), X, evaluate, progress=False)
    assert [group.name for group in found.groups] == [group.name for group in straight.groups]


@pytest.mark.parametrize(
    "at", [pytest.param(at, marks=() if at == 4 else pytest.mark.long) for at in range(1, 7)]
)
def test_it_goes_on_where_it_was(exported: ExportedProgram, at: int, tmp_path: Path) -> None:
    """After Ctrl-C in each evaluation: the same answer, and nothing is evaluated twice."""
    whole = Evaluate(exported)
    wanted = tq.sensitivity(exported, static(), X, whole, progress=False)
    assert whole.calls == 6
    first = Evaluate(exported, {at: interrupt})
    with pytest.raises(KeyboardInterrupt):
        tq.sensitivity(exported, static(), X, first, state=tmp_path / "state", progress=False)
    second = Evaluate(exported)
    found = tq.sensitivity(exported, static(), X, second, state=tmp_path / "state", progress=False)
    assert found == wanted
    assert second.calls == 6 - (at - 1)


def test_a_state_of_something_else_is_refused(exported: ExportedProgram, tmp_path: Path) -> None:
    """Of another quantizer, other weights, other observers, or other calibration data."""
    path = tmp_path / "state"
    tq.sensitivity(exported, static(), X, Evaluate(exported), state=path, progress=False)
    before = path.read_bytes()
    torch.manual_seed(1)
    other = export(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)), X[0])
    dynamic = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    attempts: dict[str, tuple[Any, ...]] = {
        "quantizer": (exported, XNNPACKQuantizer().set_global(dynamic), X),
        "weights": (other, static(), X),
        "calibration": (exported, static(), [3 * x for x in X]),
    }
    for name, arguments in attempts.items():
        with pytest.raises(tq.AccuracyError, match=f"its {name} differs"):
            tq.sensitivity(*arguments, Evaluate(exported), state=path, progress=False)
    with pytest.raises(tq.AccuracyError, match="its observers differs"):
        tq.sensitivity(
            exported,
            static(),
            X,
            Evaluate(exported),
            state=path,
            activation_observer="minmax",
            progress=False,
        )
    assert path.read_bytes() == before


def damaged(text: str) -> dict[str, str]:
    """Ways in which a state may be damaged."""
    document = json.loads(text)
    return {
        "empty": "",
        "cut off": text[: len(text) // 2],
        "a list": "[]",
        "without values": json.dumps({key: value for key, value in document.items() if key != "values"}),
        "values of texts": json.dumps({**document, "values": {"float": "good"}}),
        "another schema": json.dumps({**document, "schema": 99}),
        "an identity that is a list": json.dumps({**document, "identity": []}),
        "an identity that is a text": json.dumps({**document, "identity": "mine"}),
        "a value that is not a number": json.dumps({**document, "values": {"float": math.nan}}),
    }


def test_a_damaged_state_is_refused(exported: ExportedProgram, tmp_path: Path) -> None:
    """Nothing is evaluated, and the file stays."""
    path = tmp_path / "state"
    tq.sensitivity(exported, static(), X, Evaluate(exported), state=path, progress=False)
    for name, text in damaged(path.read_text()).items():
        path.write_text(text)
        evaluate = Evaluate(exported)
        with pytest.raises(tq.AccuracyError):
            tq.sensitivity(exported, static(), X, evaluate, state=path, progress=False)
        assert evaluate.calls == 0, name
        assert path.read_text() == text, name


def test_a_metric_that_fails_keeps_what_was_evaluated(exported: ExportedProgram, tmp_path: Path) -> None:
    """It says for which model, and the next run goes on there."""

    def fail() -> float:
        raise ValueError("no such label")

    with pytest.raises(tq.AccuracyError, match="no such label"):
        tq.sensitivity(
            exported,
            static(),
            X,
            Evaluate(exported, {4: fail}),
            state=tmp_path / "state",
            progress=False,
        )
    again = Evaluate(exported)
    tq.sensitivity(exported, static(), X, again, state=tmp_path / "state", progress=False)
    assert again.calls == 3


def test_a_user_may_call_eval(exported: ExportedProgram) -> None:
    """Most functions that judge a model begin so."""
    found = tq.sensitivity(exported, static(), X, lambda model: float(model.eval() is model), progress=False)
    assert found.float_metric == found.quantized_metric == 1
