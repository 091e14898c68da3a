"""The report of calibration_of, and the warnings that the ledger gets."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from pages import Page
from strategies import export, normal, prepare
from torchquilt.pt2e.calibration.convergence import Progress
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

QUANTIZER = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))


def prepared_linear(observer: str = "histogram") -> GraphModule:
    """One linear, whose input and output are observed."""
    torch.manual_seed(0)
    return prepare(nn.Linear(64, 256), QUANTIZER, normal(16, 64), observer=observer)


def batches(count: int, growth: float = 1.0) -> Iterator[torch.Tensor]:
    """Batches of one kind, or of ever larger numbers."""
    return (normal(16, 64, seed=seed) * growth**seed for seed in range(count))


def test_a_report_counts_what_is_no_data() -> None:
    """NaN, infinities and mask values, each for itself; the text lists the tensors that had any."""
    prepared = prepared_linear()
    x = normal(16, 64)
    x[0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    x[1, :4] = torch.finfo(torch.float32).min
    tq.calibrate(prepared, [x, normal(16, 64, seed=1)])
    report = tq.calibration_of(prepared)
    seen = report.tensors[0]
    assert (seen.count, seen.nan, seen.infinite, seen.masked) == (2 * 16 * 64 - 7, 1, 2, 4)
    assert seen.low is not None
    assert -6 < seen.low < 0
    assert report.batches == 2
    assert "left out" in str(report)
    assert seen.edges[0] in str(report)


@pytest.mark.parametrize("observer", ["histogram", "minmax"])
@pytest.mark.parametrize("count", [64, 70])
def test_a_report_says_that_ranges_have_settled(observer: str, count: int) -> None:
    """All kinds of data were among the first twenty batches: the last ones move nothing, and it is said."""
    first = [*batches(20)]
    prepared = tq.calibrate(prepared_linear(observer), [first[number % 20] for number in range(count)])
    report = tq.calibration_of(prepared)
    assert report.settled_since is not None
    assert report.settled_since <= 32
    assert report.moves[-1][0] == count
    assert f"since batch {report.settled_since}" in str(report)


@pytest.mark.parametrize("observer", ["histogram", "minmax"])
def test_a_report_says_that_more_data_moves_ranges(observer: str) -> None:
    """Each batch is larger than all before: nothing has settled."""
    report = tq.calibration_of(tq.calibrate(prepared_linear(observer), batches(40, 1.1)))
    assert report.settled_since is None
    seen, move = report.moves[-1]
    assert seen == 40
    # Each end is where it was eight batches before, times 1.1 to the eighth, as far as batches are alike.
    assert move == pytest.approx((1 - 1.1**-8) / 2, rel=0.25)
    assert "still moves" in str(report)


def test_too_few_batches_say_nothing() -> None:
    """With eight there is nothing to compare yet."""
    report = tq.calibration_of(tq.calibrate(prepared_linear(), batches(8)))
    assert report.settled_since is None
    assert "too few batches" in str(report)


def test_calls_add_up() -> None:
    """Two calls are one calibration: what is compared is what it is after one call."""
    one, two = prepared_linear(), prepared_linear()
    tq.calibrate(one, list(batches(32)))
    for start in (0, 16):
        tq.calibrate(two, list(batches(32))[start : start + 16])
    assert tq.calibration_of(one) == tq.calibration_of(two)


@pytest.mark.parametrize(
    ("moves", "since"),
    [
        ((), None),
        (((16, 0.5), (32, 0.01), (64, 0.001)), 16),
        (((16, 0.01), (32, 0.01)), 8),
        (((16, 0.01), (32, 0.5)), None),
        (((16, 0.01), (32, 0.5), (64, 0.0)), 32),
    ],
)
def test_settled_is_since_the_last_move(moves: tuple[tuple[int, float], ...], since: int | None) -> None:
    """The number of batches that were seen when what was compared last moved too far had been seen."""
    assert Progress(64, moves=moves).settled_since == since


def test_a_branch_that_was_never_taken_is_told() -> None:
    """The report names the tensors that no batch reached."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, self.large, self.small, (x,))

    prepared = tq.calibrate(prepare(Gated(), QUANTIZER, torch.ones(2, 4)), [torch.ones(2, 4)])
    report = tq.calibration_of(prepared)
    assert any("false_graph" in edge for tensor in report.never_reached for edge in tensor.edges)
    assert "never reached: " in str(report)


def outlying() -> torch.Tensor:
    """A thousand ordinary numbers and one that is thousands of times as large."""
    x = normal(16, 64)
    x[5, 7] = 20_000.0
    return x


def test_an_outlier_is_a_warning_in_the_ledger() -> None:
    """The ledger of the converted model names the tensor, its range and the ratio, as text, JSON and HTML."""
    prepared = tq.calibrate(prepared_linear(), [outlying()])
    ledger = tq.ledger_of(tq.convert_pt2e(prepared))
    (caution, *_) = ledger.warnings
    assert caution.code == "outlier"
    assert "input" in caution.edges
    assert f"warning: {caution}" in str(ledger)
    assert tq.Ledger.from_json(ledger.to_json()) == ledger
    assert any("outlier" in text for text in Page(ledger._repr_html_()).texts)
    assert tq.calibration_of(prepared).warnings == ledger.warnings
    assert f"warning: {caution}" in str(tq.calibration_of(prepared))


@pytest.mark.parametrize(
    ("observer", "data"),
    [("histogram", normal(16, 64)), ("percentile", outlying()), ("minmax", outlying())],
    ids=["no outlier", "cut off", "not known"],
)
def test_where_no_outlier_takes_the_range_there_is_no_warning(observer: str, data: torch.Tensor) -> None:
    """Nor where the observer does not know, since it keeps only the two ends."""
    prepared = tq.calibrate(prepared_linear(observer), [data])
    assert tq.ledger_of(tq.convert_pt2e(prepared)).warnings == ()


def test_a_ledger_that_was_written_without_warnings_is_read() -> None:
    """One that an earlier version wrote has no such key."""
    ledger = tq.explain(export(nn.Linear(4, 4), normal(2, 4)), QUANTIZER)
    text = ledger.to_json().replace('"warnings": []', '"further": []')
    assert tq.Ledger.from_json(text) == ledger


def test_a_report_is_html_in_a_notebook() -> None:
    """With a row for each group of tensors."""
    report = tq.calibration_of(tq.calibrate(prepared_linear(), [outlying()]))
    page = Page(report._repr_html_())
    assert page.open == []
    assert sum(tag == "tr" for tag, _ in page.tags) == 1 + len(report.tensors)


@pytest.mark.parametrize("stage", ["float", "converted"])
def test_only_a_prepared_model_has_a_report(stage: str) -> None:
    """Others have no observers; the error says what they are."""
    model = (
        nn.Linear(4, 4) if stage == "float" else tq.convert_pt2e(tq.calibrate(prepared_linear(), batches(1)))
    )
    with pytest.raises(tq.ModelError, match="prepared") as caught:
        tq.calibration_of(model)  # type: ignore[arg-type]
    assert ("converted" if stage == "converted" else "Linear") in str(caught.value.got)
