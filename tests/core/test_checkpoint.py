"""Calibrating with a checkpoint: what was cut short goes on, and nothing else is taken for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

import torchquilt as tq
from strategies import export, normal
from torchquilt.observers import MinMaxObserver
from torchquilt.pt2e.calibration.calibrate import calibrate_in_steps
from torchquilt.pt2e.observer_points import observed_points
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config


class Counting(nn.Module):
    """A model whose output depends on the number of calls, so its buffer belongs to a calibration, too."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.fc = nn.Linear(4, 4)
        self.register_buffer("calls", torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """fc(calls * x), one more call."""
        self.calls.add_(1)
        return self.fc(x * self.calls)


BATCHES = [normal(2, 4, seed=seed) for seed in range(5)]


@pytest.fixture(scope="module")
def exported() -> ExportedProgram:
    """The model; preparing does not change it."""
    return export(Counting(), BATCHES[0])


def quantizer(**asked: Any) -> XNNPACKQuantizer:
    """XNNPACK everywhere, static."""
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(**asked))


def prepared_of(exported: ExportedProgram, observer: Any = "histogram", **asked: Any) -> GraphModule:
    """A model that has seen nothing yet."""
    return tq.prepare_pt2e(exported, quantizer(**asked), activation_observer=observer)


def state_of(prepared: GraphModule) -> dict[str, Any]:
    """All that calibration changes, as values that compare."""
    states = {name: point.observer.state() for name, point in observed_points(prepared).items()}
    plain = {
        name: {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in s.items()}
        for name, s in states.items()
    }
    return {**plain, "calls": prepared.calls.tolist()}


def interrupted(batches: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Batches whose source fails behind the last of them."""
    yield from batches
    raise KeyboardInterrupt


@pytest.mark.parametrize("observer", ["histogram", "minmax"])
def test_what_was_cut_short_ends_like_what_was_not(
    exported: ExportedProgram, observer: str, tmp_path: Path
) -> None:
    """After an interruption, another model goes on from the file, and ends with the very same state."""
    whole = tq.calibrate(prepared_of(exported, observer), BATCHES)
    with pytest.raises(KeyboardInterrupt):
        tq.calibrate(prepared_of(exported, observer), interrupted(BATCHES[:3]), checkpoint=tmp_path / "state")
    resumed = tq.calibrate(prepared_of(exported, observer), BATCHES, checkpoint=tmp_path / "state")
    assert state_of(resumed) == state_of(whole)
    converted = tq.convert_pt2e(resumed)
    assert converted.calls.item() == 1  # a model starts with what it was exported with
    assert torch.equal(converted(BATCHES[0]), tq.convert_pt2e(whole)(BATCHES[0]))


def test_batches_of_the_checkpoint_are_not_run_again(exported: ExportedProgram, tmp_path: Path) -> None:
    """The first step of what goes on is the number of batches that were seen before."""
    steps = calibrate_in_steps(prepared_of(exported), BATCHES, limit=3, checkpoint=tmp_path / "state")
    assert list(steps) == [1, 2, 3]
    again = prepared_of(exported)
    assert list(calibrate_in_steps(again, BATCHES, checkpoint=tmp_path / "state")) == [3, 4, 5]
    assert again.calls.item() == 6


def test_a_model_that_was_interrupted_within_a_batch_is_brought_back(
    exported: ExportedProgram, tmp_path: Path
) -> None:
    """Half a batch leaves nothing in the observers of a model that goes on from a checkpoint."""
    prepared = prepared_of(exported)
    *_, last = observed_points(prepared).values()
    last.forward = _raise  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        tq.calibrate(prepared, BATCHES, checkpoint=tmp_path / "state")
    assert prepared.calls.item() == 2
    del last.forward
    tq.calibrate(prepared, BATCHES, checkpoint=tmp_path / "state")
    assert state_of(prepared) == state_of(tq.calibrate(prepared_of(exported), BATCHES))


def _raise(tensor: torch.Tensor) -> torch.Tensor:
    raise KeyboardInterrupt


@pytest.fixture
def path(exported: ExportedProgram, tmp_path: Path) -> Path:
    """A checkpoint of the first three batches."""
    tq.calibrate(prepared_of(exported), BATCHES, limit=3, checkpoint=tmp_path / "state")
    return tmp_path / "state"


Other = tuple[Callable[[ExportedProgram], GraphModule], str]
OTHERS: dict[str, Other] = {
    "quantizer": (lambda exported: prepared_of(exported, act_qmin=-100), "quantizer"),
    "observers": (lambda exported: prepared_of(exported, "minmax"), "observers"),
    "weights": (lambda _: prepared_of(export(Counting(seed=1), BATCHES[0])), "weights"),
    "graph": (
        lambda _: prepared_of(export(nn.Sequential(Counting(), nn.ReLU()), BATCHES[0])),
        "weights, observers, graph",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_the_checkpoint_of_another_calibration_is_refused(
    exported: ExportedProgram, path: Path, case: str
) -> None:
    """The error says what is not the same; neither the model nor the file is changed."""
    make, different = OTHERS[case]
    prepared, content = make(exported), path.read_bytes()
    with pytest.raises(tq.CalibrationError, match=f"with other .*{different}") as caught:
        tq.calibrate(prepared, BATCHES, checkpoint=path)
    assert str(path) in caught.value.problem
    assert path.read_bytes() == content
    assert not any(point.observer.count for point in observed_points(prepared).values())


@pytest.mark.parametrize(
    ("batches", "limit", "problem"),
    [
        pytest.param(BATCHES[::-1], None, "with other data", id="another-order"),
        pytest.param([b + 1 for b in BATCHES], None, "with other data", id="other-numbers"),
        pytest.param(BATCHES[:2], None, "with more data", id="fewer"),
        pytest.param(BATCHES, 2, "with more data", id="limit"),
    ],
)
def test_a_calibration_goes_on_only_with_its_own_data(
    exported: ExportedProgram, path: Path, batches: list[torch.Tensor], limit: int | None, problem: str
) -> None:
    """Data that does not begin with what was seen is refused, and the model has seen nothing of it."""
    prepared = prepared_of(exported)
    with pytest.raises(tq.CalibrationError, match=problem):
        tq.calibrate(prepared, batches, limit=limit, checkpoint=path)
    assert not any(point.observer.count for point in observed_points(prepared).values())


@pytest.mark.parametrize("content", [b"", b"something else", 0.999, 0.9, 0.5, 0.1, "pickle"])
def test_a_file_that_is_no_checkpoint_is_refused(
    exported: ExportedProgram, path: Path, content: bytes | float | str
) -> None:
    """Whatever else is in the file, or only a share of it, the error is ours, and it is left as it is."""
    if isinstance(content, float):
        whole = path.read_bytes()
        content = whole[: int(len(whole) * content)]
    elif content == "pickle":
        torch.save({"torchquilt_checkpoint": print}, path)
        content = path.read_bytes()
    assert isinstance(content, bytes)
    path.write_bytes(content)
    with pytest.raises(tq.CalibrationError, match="is no checkpoint"):
        tq.calibrate(prepared_of(exported), BATCHES, checkpoint=path)
    assert path.read_bytes() == content


def test_a_place_that_cannot_be_written_to_shows_before_the_first_batch(
    exported: ExportedProgram, tmp_path: Path
) -> None:
    """The error comes before data is read."""
    with pytest.raises(OSError, match="nowhere"):
        tq.calibrate(prepared_of(exported), iter(()), checkpoint=tmp_path / "nowhere/state")


def test_an_observer_that_keeps_objects_is_refused(exported: ExportedProgram, tmp_path: Path) -> None:
    """A state that could not be read again is not written: the error names the observer and what it keeps."""

    class Keeping(MinMaxObserver):
        def __init__(self, spec: tq.QuantizationSpec) -> None:
            super().__init__(spec)
            self.seen = [math]

    with pytest.raises(tq.CalibrationError, match="cannot be kept in a file") as caught:
        tq.calibrate(prepared_of(exported, Keeping), BATCHES, checkpoint=tmp_path / "state")
    assert "Keeping" in str(caught.value.got)
    assert not (tmp_path / "state").exists()
