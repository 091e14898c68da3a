"""calibrate: the forms that data may have, and what happens to data that does not fit."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import datasets
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from strategies import Fn, export, normal, prepare
from torchquilt._internal import terminal
from torchquilt.pt2e.calibration.interrupts import between_batches
from torchquilt.pt2e.observer_points import ObservedPoint
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config


def xnnpack(**asked: bool) -> XNNPACKQuantizer:
    """XNNPACK everywhere."""
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(**asked))


class TwoInputs(nn.Module):
    """Something with two named inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(4, 4)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """fc(left) + right."""
        return self.fc(left) + right


def one_input() -> GraphModule:
    """A prepared linear."""
    torch.manual_seed(0)
    return prepare(nn.Linear(4, 4), xnnpack(), normal(2, 4))


def seen(prepared: GraphModule) -> dict[str, tuple[int, float, float]]:
    """For each observed tensor: how many values, the smallest, the largest."""
    points = [module for module in prepared.modules() if isinstance(module, ObservedPoint)]
    return {
        point.names[0]: (
            point.observer.count,
            float(point.observer.low.min()),
            float(point.observer.high.max()),
        )
        for point in points
    }


LEFT, RIGHT = normal(2, 4), normal(2, 4, seed=1)


@pytest.mark.parametrize(
    "batch",
    [(LEFT, RIGHT), [LEFT, RIGHT], {"left": LEFT, "right": RIGHT}, {"right": RIGHT, "left": LEFT}],
    ids=["tuple", "list", "mapping", "mapping in another order"],
)
def test_a_batch_may_be_positional_or_named(batch: Any) -> None:
    """Whichever form a batch has, the observers see the same."""
    by_hand = prepare(TwoInputs(), xnnpack(), LEFT, RIGHT)
    by_hand(LEFT, RIGHT)
    prepared = prepare(TwoInputs(), xnnpack(), LEFT, RIGHT)
    tq.calibrate(prepared, [batch])
    assert seen(prepared) == seen(by_hand)


def test_a_batch_may_be_the_only_input_by_itself() -> None:
    """A tensor is a batch for a model with one input."""
    one, other = one_input(), one_input()
    tq.calibrate(one, [LEFT, RIGHT])
    tq.calibrate(other, [(LEFT,), (RIGHT,)])
    assert seen(one) == seen(other)


def test_batches_may_come_from_a_generator() -> None:
    """One batch is asked for after the other, and each is seen before the next is made."""
    prepared = one_input()
    counts: list[int] = []

    def batches() -> Iterator[torch.Tensor]:
        for seed in range(3):
            counts.append(next(iter(seen(prepared).values()))[0])
            yield normal(2, 4, seed=seed)

    tq.calibrate(prepared, batches())
    assert counts == [0, 8, 16]


def test_calibrate_returns_the_model() -> None:
    """Calls can be nested."""
    prepared = one_input()
    assert tq.calibrate(prepared, [LEFT]) is prepared


def test_the_order_of_batches_does_not_matter() -> None:
    """The same batches in another order, or in two calls, end in the same model."""
    batches = [normal(2, 4, seed=seed) * (seed + 1) for seed in range(4)]
    one, other, third = one_input(), one_input(), one_input()
    tq.calibrate(one, batches)
    tq.calibrate(other, batches[::-1])
    tq.calibrate(tq.calibrate(third, batches[2:]), batches[:2])
    assert seen(one) == seen(other) == seen(third)
    assert tq.convert_pt2e(one).code == tq.convert_pt2e(other).code == tq.convert_pt2e(third).code


def test_limit_stops_and_takes_no_batch_too_many() -> None:
    """limit=2 runs two batches, and leaves the third in the iterator."""
    prepared = one_input()
    batches = iter([LEFT, RIGHT, LEFT * 100])
    tq.calibrate(prepared, batches, limit=2)
    assert next(iter(seen(prepared).values()))[0] == 16
    assert torch.equal(next(batches), LEFT * 100)


@pytest.mark.parametrize(
    ("bad", "mentioned"),
    [
        (normal(2, 5), "float32[2, 5]"),
        ((LEFT, RIGHT), "(float32[2, 4], float32[2, 4])"),
        ({"wrong": LEFT}, "{wrong: float32[2, 4]}"),
        ("text", "'text'"),
    ],
    ids=["shape", "too many", "name", "type"],
)
def test_a_batch_that_does_not_fit_is_named(bad: Any, mentioned: str) -> None:
    """The error says which batch it was and how it looked; what the batches before it showed is kept."""
    prepared, reference = one_input(), one_input()
    tq.calibrate(reference, [LEFT, RIGHT])
    with pytest.raises(tq.CalibrationError, match="Batch 2 ") as caught:
        tq.calibrate(prepared, [LEFT, RIGHT, bad, LEFT])
    assert mentioned in str(caught.value.got)
    assert caught.value.__cause__ is not None
    assert seen(prepared) == seen(reference)
    tq.calibrate(prepared, [LEFT * 2])
    tq.convert_pt2e(prepared)


def test_an_error_of_the_data_itself_is_not_hidden() -> None:
    """An error of a generator of batches comes through as it is."""

    def batches() -> Iterator[torch.Tensor]:
        yield LEFT
        raise KeyError("missing file")

    with pytest.raises(KeyError, match="missing file"):
        tq.calibrate(one_input(), batches())


@pytest.mark.parametrize("options", [{}, {"limit": 0}], ids=["empty", "limit=0"])
def test_no_batches_at_all_is_an_error(options: dict[str, int]) -> None:
    """An exhausted generator would otherwise be noticed only at convert."""
    batches = [LEFT] if options else []
    with pytest.raises(tq.CalibrationError, match="no batch"):
        tq.calibrate(one_input(), batches, **options)


def test_a_dynamic_model_needs_no_batches() -> None:
    """A model in which nothing is observed needs no data."""
    prepared = prepare(nn.Linear(4, 4), xnnpack(is_dynamic=True), LEFT)
    assert tq.calibrate(prepared, []) is prepared


def test_no_gradients_are_recorded() -> None:
    """Calibration builds no graph for gradients, however much data goes through."""
    recorded: list[bool] = []

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)

    prepared = prepare(Fn(forward, fc=nn.Linear(4, 4)), xnnpack(), LEFT)
    point = next(module for module in prepared.modules() if isinstance(module, ObservedPoint))
    point.register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    tq.calibrate(prepared, [LEFT])
    assert recorded == [False]
    assert torch.is_grad_enabled()


def test_a_model_run_by_hand_is_calibrated_as_well() -> None:
    """prepared(*batch) with gradients on is the same as calibrate."""
    by_hand, by_call = one_input(), one_input()
    by_hand(LEFT.clone().requires_grad_())
    tq.calibrate(by_call, [LEFT])
    assert seen(by_hand) == seen(by_call)
    assert tq.convert_pt2e(by_hand).code == tq.convert_pt2e(by_call).code


@pytest.mark.parametrize(
    "batches",
    [torch.ones(2, 6), {"x": torch.ones(2, 6)}, None, 3],
    ids=["tensor", "mapping", "none", "number"],
)
def test_one_batch_is_not_taken_for_several(batches: Any) -> None:
    """Rows of a tensor and keys of a mapping are no batches; the error says how to pass a single one."""
    prepared = tq.prepare_pt2e(export(nn.Linear(6, 5), normal(2, 6)), xnnpack())
    with pytest.raises(tq.CalibrationError, match=r"calibrate\(prepared, \[batch\]\)"):
        tq.calibrate(prepared, batches)


@pytest.mark.parametrize("limit", [-1, 1.5])
def test_a_limit_is_a_number_of_batches(limit: Any) -> None:
    """Nothing else is taken."""
    prepared = tq.prepare_pt2e(export(nn.Linear(6, 5), normal(2, 6)), xnnpack())
    with pytest.raises(tq.CalibrationError, match="limit"):
        tq.calibrate(prepared, [(normal(2, 6),)], limit=limit)


# ----------------------------------------------------------------------------------------------------------
# Data of other shapes
# ----------------------------------------------------------------------------------------------------------


def test_batches_may_come_from_a_data_loader() -> None:
    """Batches of a DataLoader over tuples and over dicts are taken as they are."""
    rows = [(LEFT[i], RIGHT[i]) for i in range(2)]
    named = [{"left": left, "right": right} for left, right in rows]
    reference = tq.calibrate(prepare(TwoInputs(), xnnpack(), LEFT, RIGHT), [(LEFT, RIGHT)])
    for data in (rows, named):
        prepared = prepare(TwoInputs(), xnnpack(), LEFT, RIGHT)
        tq.calibrate(prepared, torch.utils.data.DataLoader(data, batch_size=2))  # type: ignore[arg-type]
        assert seen(prepared) == seen(reference)


FORMS: dict[str, Callable[[datasets.Dataset], Iterable[Any]]] = {
    "lists": lambda rows: rows,
    "tensors": lambda rows: rows.with_format("torch"),
    "arrays": lambda rows: rows.with_format("numpy"),
    "selected": lambda rows: rows.shuffle(seed=0).select(range(3)),
    "stream": lambda rows: rows.to_iterable_dataset(),
    "stream of tensors": lambda rows: rows.to_iterable_dataset().with_format("torch"),
    "generator": lambda rows: datasets.IterableDataset.from_generator(lambda: iter(rows)),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_batches_may_be_the_rows_of_a_dataset(form: Callable[[datasets.Dataset], Iterable[Any]]) -> None:
    """Each row is a batch of one: its lists become tensors of the right dtype, and other columns are left."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.fc = nn.Embedding(20, 6), nn.Linear(6, 6)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.fc(self.table(ids)) * mask[:, :, None]

    ids, mask = torch.arange(5)[None], torch.ones(1, 5)
    rows: list[dict[str, Any]] = [
        {"text": "some words", "ids": [i, 2, 3, 4, 5], "mask": [1, 1, 1, 1, 0], "label": i} for i in range(3)
    ]
    reference = prepare(Tokens(), xnnpack(), ids, mask)
    tq.calibrate(
        reference, [(torch.tensor([row["ids"]]), torch.tensor([row["mask"]]).float()) for row in rows]
    )
    prepared = prepare(Tokens(), xnnpack(), ids, mask)
    tq.calibrate(prepared, form(datasets.Dataset.from_list(rows)))
    assert seen(prepared) == seen(reference)


def test_a_dataset_of_several_splits_is_refused_with_their_names() -> None:
    """A dataset without a chosen split is refused with the names of its splits."""
    rows = datasets.Dataset.from_list([{"input": [0.0] * 4}])
    with pytest.raises(tq.CalibrationError) as caught:
        tq.calibrate(one_input(), datasets.DatasetDict(train=rows, test=rows))
    assert "train, test" in str(caught.value)


@pytest.mark.parametrize(
    ("batch", "advice"),
    [
        ((LEFT, torch.tensor([0, 1])), "batch[:1] for batch in batches"),
        ({"input": LEFT, "label": torch.tensor([0, 1])}, "leave out label"),
    ],
    ids=["tuple", "mapping"],
)
def test_labels_in_a_batch_are_told_of(batch: Any, advice: str) -> None:
    """A batch with labels is refused with what to pass instead."""
    with pytest.raises(tq.CalibrationError, match="Batch 0 ") as caught:
        tq.calibrate(one_input(), [batch])
    assert advice in str(caught.value.remedy)


# ----------------------------------------------------------------------------------------------------------
# Interrupts
# ----------------------------------------------------------------------------------------------------------


def test_an_interrupt_waits_for_the_end_of_the_batch() -> None:
    """Ctrl-C in the middle of the second batch: both are seen, by all points, and the third is not."""
    prepared, reference = one_input(), one_input()
    tq.calibrate(reference, [LEFT, RIGHT])
    first = next(module for module in prepared.modules() if isinstance(module, ObservedPoint))
    calls = []

    def press(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    handle = first.register_forward_hook(press)
    with pytest.raises(KeyboardInterrupt):
        tq.calibrate(prepared, [LEFT, RIGHT, LEFT * 100])
    handle.remove()
    assert seen(prepared) == seen(reference)
    assert tq.calibration_of(prepared).batches == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_interrupt_does_not_wait() -> None:
    """A second interrupt ends the calibration at once."""
    reached = []

    def press_twice() -> None:
        with between_batches():
            for number in (1, 2):
                os.kill(os.getpid(), signal.SIGINT)
                reached.append(number)

    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert reached == [1]


# ----------------------------------------------------------------------------------------------------------
# Progress
# ----------------------------------------------------------------------------------------------------------


def test_there_is_no_progress_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """The output of a program has no progress bar when it is no terminal."""
    tq.calibrate(one_input(), [LEFT, RIGHT])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("has_rich", [True, False], ids=["rich", "no rich"])
@pytest.mark.parametrize("form", ["list", "generator"])
def test_a_terminal_is_shown_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, has_rich: bool, form: str
) -> None:
    """It shows the number of batches, their total where it is known, and the rate; with rich and without."""
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    if not has_rich:
        monkeypatch.setattr(terminal.importlib.util, "find_spec", lambda name: None)
    batches = [LEFT, RIGHT, LEFT]
    tq.calibrate(one_input(), batches if form == "list" else iter(batches))
    text = screen.getvalue()
    assert "calibrating" in text
    assert "3" in text
    assert "batches/s" in text
    if form == "list":
        assert "3/3" in text


def test_progress_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """progress=False writes nothing, on a terminal neither."""
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    tq.calibrate(one_input(), [LEFT], progress=False)
    assert screen.getvalue() == ""


class Screen(io.StringIO):
    """A terminal that keeps what is written to it."""

    def isatty(self) -> bool:
        """Yes."""
        return True
