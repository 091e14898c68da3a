"""The metric: how models are judged by data, its direction, and drops of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import torchquilt as tq
from strategies import Fn, export, normal
from torchquilt.accuracy.metric import Metric, allowed_drop

PAIRS = [(normal(2, 4, seed=seed), torch.tensor([0, 1])) for seed in range(3)]


def accuracy(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Share of rows whose largest element is the target."""
    return (outputs.argmax(-1) == target).float().mean()


class Running:
    """A metric with a state, as torchmetrics has them."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []
        self.resets = 0

    def reset(self) -> None:
        """Begin anew."""
        self.seen, self.resets = [], self.resets + 1

    def update(self, outputs: torch.Tensor, target: torch.Tensor) -> None:
        """Take in a pair."""
        self.seen.append((outputs.argmax(-1) == target).float())

    def compute(self) -> torch.Tensor:
        """Value of all pairs."""
        return torch.cat(self.seen).mean()


def test_it_is_the_mean_over_the_pairs() -> None:
    """A plain loop gives the same."""
    model = nn.Linear(4, 3)
    wanted = sum(float(accuracy(model(x), y)) for x, y in PAIRS) / 3
    assert tq.evaluate_on(PAIRS, accuracy)(model) == pytest.approx(wanted, abs=1e-12)


def test_a_metric_with_a_state_sees_all_pairs_and_begins_anew_for_each_model() -> None:
    """As torchmetrics' objects do, which is not the mean of means."""
    uneven = [(normal(1, 4), torch.tensor([0])), *PAIRS]
    model, running = nn.Linear(4, 3), Running()
    evaluate = tq.evaluate_on(uneven, running)
    rows = torch.cat([(model(x).argmax(-1) == y).float() for x, y in uneven])
    assert evaluate(model) == evaluate(model) == pytest.approx(float(rows.mean()))
    assert running.resets == 2


def test_torchmetrics_objects_are_taken() -> None:
    """If they are installed."""
    classification = pytest.importorskip("torchmetrics.classification")
    metric = classification.MulticlassAccuracy(num_classes=3, average="micro")
    model = nn.Linear(4, 3)
    plain = tq.evaluate_on(PAIRS, accuracy)(model)
    assert tq.evaluate_on(PAIRS, metric)(model) == pytest.approx(plain)


@pytest.mark.parametrize("exported", [False, True])
def test_inputs_are_given_as_calibrate_takes_them(exported: bool) -> None:
    """By position, by name, or as the only one."""
    module = Fn(lambda _, x: x * 2)
    model: Any = export(module, torch.ones(2)).module() if exported else module
    x = torch.tensor([1.0, 2.0])
    batches: list[Any] = [x, (x,), [x], *([{"args_0": x}] if exported else [])]
    for batch in batches:
        assert tq.evaluate_on([(batch, None)], lambda y, _: y.sum())(model) == 6


def test_no_gradient_is_kept() -> None:
    """The outputs do not ask for one."""
    seen = []
    tq.evaluate_on(PAIRS, lambda y, _: seen.append(y.requires_grad) or 0.0)(nn.Linear(4, 3))
    assert seen == [False] * 3


def test_data_that_can_be_read_once_is_refused() -> None:
    """The second model would be judged by nothing."""
    with pytest.raises(tq.AccuracyError, match=r"list\(data\)"):
        tq.evaluate_on(iter(PAIRS), accuracy)


def test_no_data_is_an_error() -> None:
    """There is no mean of nothing."""
    with pytest.raises(tq.AccuracyError, match="no data"):
        tq.evaluate_on([], accuracy)(nn.Linear(4, 3))


def test_a_metric_that_fails_says_for_which_model() -> None:
    """Its own exception is the cause."""

    def failing(_: Any) -> float:
        raise RuntimeError("out of luck")

    with pytest.raises(tq.AccuracyError, match="failed for the model without fc") as found:
        Metric(failing)(None, "the model without fc")
    assert isinstance(found.value.__cause__, RuntimeError)
    assert "out of luck" in str(found.value)


def test_what_is_no_number_is_refused() -> None:
    """NaN would compare as neither better nor worse, and a text is nothing at all."""
    with pytest.raises(tq.AccuracyError, match="not a number"):
        Metric(lambda _: math.nan)(None, "it")
    with pytest.raises(tq.AccuracyError, match="failed for it"):
        Metric(lambda _: "good")(None, "it")  # type: ignore[arg-type,return-value]


def test_a_tensor_of_one_element_is_a_number() -> None:
    """So is what numpy returns."""
    assert Metric(lambda _: torch.tensor([0.5]))(None, "it") == 0.5  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("minimize", [False, True])
def test_a_drop_is_positive_where_it_is_worse(minimize: bool) -> None:
    """Whichever direction is better."""
    metric = Metric(lambda _: 0.0, minimize)
    worse, better = (3.0, 2.0) if minimize else (2.0, 3.0)
    assert metric.drop(better, worse) == 1
    assert metric.drop(worse, better) == -1
    assert metric.is_better(better, worse)
    assert not metric.is_better(worse, better)
    assert not metric.is_better(worse, worse)


@pytest.mark.parametrize(
    ("drop", "reference", "wanted"),
    [(0, 5.0, 0.0), (0.25, 5.0, 0.25), ("1%", 50.0, 0.5), (" 2.5 % ", -40.0, 1.0), ("0%", 7.0, 0.0)],
)
def test_a_drop_is_absolute_or_a_share(drop: float | str, reference: float, wanted: float) -> None:
    """A share is that of the size of the reference, which may be negative."""
    assert allowed_drop(drop, reference) == pytest.approx(wanted)


@pytest.mark.parametrize("drop", [-0.1, math.nan, "1", "-1%", "%", True, None, [1]])
def test_what_is_no_drop_is_refused(drop: Any) -> None:
    """It says what one is."""
    with pytest.raises(tq.AccuracyError, match="no drop"):
        allowed_drop(drop, 1.0)
