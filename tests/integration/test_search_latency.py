"""Search within a latency, and the work that a search is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

import torchquilt as tq
from strategies import export, normal
from torchquilt.accuracy.judging import Judge
from torchquilt.accuracy.units import Choice
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config
from work import growth

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

X = normal(4, 8)


def static() -> XNNPACKQuantizer:
    """Everything static, per channel."""
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))


def chain(length: int) -> ExportedProgram:
    """Linears in a row."""
    torch.manual_seed(0)
    return export(nn.Sequential(*(nn.Linear(8, 8) for _ in range(length))), X)


def integer_layers(model: Any) -> int:
    """Number of linears whose weight is stored in integers."""
    found = 0
    for node in model.graph.nodes:
        if node.op == "call_function" and "linear" in str(node.target):
            found += "dequantize" in str(node.args[1].target)
    return found


@pytest.fixture
def slow_in_float(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A target on which a multiply-add in float takes a millisecond, and any batch ten; all it timed."""
    timed: list[float] = []

    def time(judge: Judge, passes: tuple[str, ...], choices: Mapping[str, Choice], _: str) -> float:
        timed.append(10.0 + judge.recovered.size(passes, choices).macs_float)
        return timed[-1]

    monkeypatch.setattr(Judge, "_timed", time)
    return timed


def test_a_latency_is_kept(slow_in_float: list[float]) -> None:
    """Beside a drop: the variant has both, and each is timed once."""
    exported = chain(4)
    options: dict[str, Any] = {"target": "executorch", "progress": False}
    found = tq.search(
        exported,
        static(),
        [X],
        lambda model: -integer_layers(model),
        max_drop=2,
        max_latency_ms=600.0,
        **options,
    )
    assert found.is_met
    assert found.best.latency_ms is not None
    assert found.best.latency_ms <= 600
    assert found.float_metric - found.best.metric <= 2
    assert len(set(slow_in_float)) <= len(slow_in_float) <= found.evaluations


def test_a_latency_alone_leaves_the_best_metric_within_it(slow_in_float: list[float]) -> None:
    """Without a drop, too, variants are timed."""
    found = tq.search(
        chain(4),
        static(),
        [X],
        lambda model: -integer_layers(model),
        max_latency_ms=300.0,
        target="executorch",
        progress=False,
    )
    assert found.is_met
    assert found.best.latency_ms is not None
    assert found.best.latency_ms <= 300
    assert slow_in_float


def test_a_latency_that_no_variant_has_is_said(slow_in_float: list[float]) -> None:
    """Ten milliseconds are the least here."""
    found = tq.search(
        chain(2), static(), [X], lambda _: 1.0, max_latency_ms=1.0, target="executorch", progress=False
    )
    assert not found.is_met
    assert "no variant is within all limits" in str(found)
    assert slow_in_float


def test_a_latency_is_measured_on_executorch() -> None:
    """Ten seconds are enough for two linears, and a nanosecond is not."""
    options: dict[str, Any] = {"max_drop": 0, "target": "executorch", "progress": False}
    found = tq.search(chain(2), static(), [X], lambda _: 1.0, max_latency_ms=10_000.0, **options)
    assert found.is_met
    assert found.best.latency_ms is not None
    assert 0 < found.best.latency_ms < 10_000
    assert not tq.search(chain(2), static(), [X], lambda _: 1.0, max_latency_ms=1e-6, **options).is_met


def test_a_target_that_is_not_installed_is_told_before_anything_is_judged() -> None:
    """As by lower."""

    def evaluate(_: Any) -> float:
        raise AssertionError("judged")

    with pytest.raises(tq.TorchquiltError, match="nowhere"):
        tq.search(chain(2), static(), [X], evaluate, max_latency_ms=1.0, target="nowhere", progress=False)


def test_work_is_linear_in_the_number_of_modules() -> None:
    """A search in which half of the modules go back to float, after all of them were tried."""

    def judged(length: int) -> int:
        found = tq.search(
            chain(length),
            static(),
            [X],
            lambda model: -integer_layers(model),
            max_drop=length // 2,
            max_evaluations=10_000,
            progress=False,
        )
        assert found.is_met
        assert found.float_metric - found.best.metric == length // 2
        return found.evaluations

    assert growth(judged, 4) < 2.6
