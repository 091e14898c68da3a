"""Calibrations that were run apart, as one: from their checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from strategies import export, normal
from torchquilt.pt2e.observer_points import observed_points
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

BATCHES = [normal(2, 4, seed=seed) * (seed + 1) for seed in range(5)]
QUANTIZER = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))


def prepared_model(observer: str = "histogram", seed: int = 0) -> GraphModule:
    """The same model each time, in a process of its own for all that it knows."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    return tq.prepare_pt2e(export(model, BATCHES[0]), QUANTIZER, activation_observer=observer)


def states(prepared: GraphModule) -> str:
    """All that the observers saw, to the last bit."""
    torch.set_printoptions(profile="full", precision=20)
    try:
        return repr({name: point.observer.state() for name, point in observed_points(prepared).items()})
    finally:
        torch.set_printoptions(profile="default")


def shard(path: Path, batches: list[torch.Tensor], **options: Any) -> Path:
    """The checkpoint of a calibration with some of the data."""
    tq.calibrate(prepared_model(**options), batches, checkpoint=path)
    return path


@pytest.mark.parametrize("observer", ["histogram", "minmax", "percentile:99", "entropy"])
def test_shards_make_the_model_of_all_the_data(observer: str, tmp_path: Path) -> None:
    """Three machines, shards of three sizes, merged in another order: the same bits, and the same model."""
    whole = tq.calibrate(prepared_model(observer), BATCHES)
    parts = [BATCHES[3:], BATCHES[:1], BATCHES[1:3]]
    paths = [shard(tmp_path / f"{n}", part, observer=observer) for n, part in enumerate(parts)]
    merged = tq.merge_calibration(paths)
    prepared = tq.calibrate(prepared_model(observer), merged)
    assert merged.batches == 5
    assert states(prepared) == states(whole)
    assert tq.convert_pt2e(prepared).code == tq.convert_pt2e(whole).code
    assert tq.calibration_of(prepared).batches == 5


def test_more_data_may_come_before_and_after(tmp_path: Path) -> None:
    """A merged calibration counts as batches: some may be run here as well."""
    paths = [shard(tmp_path / "0", BATCHES[1:2]), shard(tmp_path / "1", BATCHES[3:])]
    prepared = tq.calibrate(prepared_model(), BATCHES[:1])
    tq.calibrate(prepared, tq.merge_calibration(paths))
    tq.calibrate(prepared, BATCHES[2:3])
    assert states(prepared) == states(tq.calibrate(prepared_model(), BATCHES))


def test_a_calibration_can_be_used_again(tmp_path: Path) -> None:
    """Two models that take it do not share what they go on to see."""
    merged = tq.merge_calibration([shard(tmp_path / "0", BATCHES[:2]), shard(tmp_path / "1", BATCHES[2:])])
    one, other = tq.calibrate(prepared_model(), merged), tq.calibrate(prepared_model(), merged)
    tq.calibrate(one, [BATCHES[0] * 100])
    assert states(other) == states(tq.calibrate(prepared_model(), BATCHES))


def test_shards_of_different_models_are_refused(tmp_path: Path) -> None:
    """The error names both files, and what is not the same."""
    paths = [shard(tmp_path / "0", BATCHES[:2]), shard(tmp_path / "1", BATCHES[2:], seed=1)]
    with pytest.raises(tq.CalibrationError, match="with other weights") as caught:
        tq.merge_calibration(paths)
    assert all(str(path) in caught.value.problem for path in paths)


@pytest.mark.parametrize(
    ("options", "what"), [({"seed": 1}, "weights"), ({"observer": "percentile:90"}, "observers")], ids=str
)
def test_another_model_does_not_take_it(options: dict[str, Any], what: str, tmp_path: Path) -> None:
    """Neither other weights nor an observer with another setting; and the model is left as it was."""
    merged = tq.merge_calibration([shard(tmp_path / "0", BATCHES, observer="percentile:99")])
    prepared = prepared_model(**{"observer": "percentile:99", **options})
    before = states(prepared)
    with pytest.raises(tq.CalibrationError, match=f"with other {what}"):
        tq.calibrate(prepared, merged)
    assert states(prepared) == before


def test_the_same_data_does_not_count_twice(tmp_path: Path) -> None:
    """Two files of one shard, or one file given twice."""
    one, other = shard(tmp_path / "0", BATCHES[:2]), shard(tmp_path / "1", BATCHES[:2])
    for paths in ([one, other], [one, one]):
        with pytest.raises(tq.CalibrationError, match="same data"):
            tq.merge_calibration(paths)


def test_a_shard_that_is_not_through_is_refused(tmp_path: Path) -> None:
    """It was interrupted: the error says how far it is, and that it goes on with the same call."""

    def interrupted() -> Any:
        yield from BATCHES[:2]
        raise KeyboardInterrupt

    path = tmp_path / "0"
    with pytest.raises(KeyboardInterrupt):
        tq.calibrate(prepared_model(), interrupted(), checkpoint=path)
    with pytest.raises(tq.CalibrationError, match="did not run to its end") as caught:
        tq.merge_calibration([path])
    assert "2 batches" in str(caught.value.got)
    tq.calibrate(prepared_model(), BATCHES, checkpoint=path)
    assert tq.merge_calibration([path]).batches == 5


def test_moving_averages_are_not_merged(tmp_path: Path) -> None:
    """Their order is not known: the error names a tensor, and observers that can be merged."""
    paths = [shard(tmp_path / f"{n}", [BATCHES[n]], observer="moving_average") for n in range(2)]
    with pytest.raises(tq.CalibrationError, match="order of the data") as caught:
        tq.calibrate(prepared_model("moving_average"), tq.merge_calibration(paths))
    assert "histogram" in str(caught.value.expected)


@pytest.mark.parametrize("paths", [[], "state"])
def test_there_have_to_be_several_paths(paths: Any) -> None:
    """None, and a single text, are mistakes."""
    with pytest.raises(tq.CalibrationError):
        tq.merge_calibration(paths)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    """A file of something else, and one that is not there."""
    (tmp_path / "0").write_bytes(b"something else")
    with pytest.raises(tq.CalibrationError, match="is no checkpoint"):
        tq.merge_calibration([tmp_path / "0"])
    with pytest.raises(OSError, match="nowhere"):
        tq.merge_calibration([tmp_path / "nowhere"])
