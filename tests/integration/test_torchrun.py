"""Calibration under torchrun: every rank ends in the model of one process with all the data, or none does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.fx import GraphModule

import torchquilt as tq
from observed import same_state
from strategies import normal, outputs_of, prepare
from torchquilt.observers import Observer
from torchquilt.pt2e.calibration.checkpoint import load_checkpoint
from torchquilt.pt2e.observer_points import observed_points

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

#: What each rank does: its shard is a part of twelve batches, as the first argument says. It writes the
#: digest of its model, or the error that it met.
PROGRAM = """
import hashlib, json, os, pathlib, signal, sys
from datetime import timedelta

import torch
import torch.distributed as dist

import torchquilt as tq
from torchquilt.pt2e.observer_points import observed_points
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

torch.set_num_threads(1)
shards, folder, options = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]), json.loads(sys.argv[3])
ranks = "RANK" in os.environ
if ranks:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
rank = dist.get_rank() if ranks else 0
torch.manual_seed(rank if options.get("other weights") else 0)
model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
exported = torch.export.export(model.eval(), (torch.ones(8, 16),))
prepared = tq.prepare_pt2e(exported, quantizer)


def batches():
    for number, seed in enumerate(shards[rank]):
        if number == 1 and rank == options.get("dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 1 and rank == options.get("fails"):
            yield torch.ones(8, 17)
        yield torch.randn(8, 16, generator=torch.Generator().manual_seed(seed)) * (seed + 1)


result = {}
try:
    tq.calibrate(prepared, batches(), group=dist.group.WORLD if ranks else None)
    quantized = tq.convert_pt2e(prepared)
    tensors = [value.numpy().tobytes() for _, value in sorted(quantized.state_dict().items())]
    states = [sorted(point.observer.state().items()) for point in observed_points(prepared).values()]
    torch.set_printoptions(profile="full", precision=20)
    text = quantized.code + repr(states)
    result["model"] = hashlib.sha256(text.encode() + b"".join(tensors)).hexdigest()
    result["batches"] = tq.calibration_of(prepared).batches
except tq.CalibrationError as error:
    result["error"] = str(error)
    result["seen"] = tq.calibration_of(prepared).batches
(folder / f"{rank}.json").write_text(json.dumps(result))
sys.exit("error" in result)
"""


def command(shards: list[list[int]], folder: Path, options: dict[str, Any]) -> list[str]:
    """Command that runs the program on as many ranks as there are shards; a single shard without torchrun."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    run = [sys.executable]
    if len(shards) > 1:
        run += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={len(shards)}"]
    return [*run, str(program), json.dumps(shards), str(folder), json.dumps(options)]


def run(shards: list[list[int]], folder: Path, **options: Any) -> list[dict[str, Any]]:
    """Last words of each rank; a rank that was killed says nothing."""
    process = subprocess.run(
        command(shards, folder, options), capture_output=True, text=True, timeout=300, check=False
    )
    found = [folder / f"{rank}.json" for rank in range(len(shards))]
    results = [json.loads(path.read_text()) if path.exists() else {} for path in found]
    assert process.returncode == int(any("model" not in result for result in results)), process.stderr
    return results


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model of one process with all of the data."""
    (result,) = run([list(range(12))], tmp_path_factory.mktemp("whole"))
    assert result["batches"] == 12
    return str(result["model"])


@pytest.mark.parametrize(
    "shards",
    [
        pytest.param([[5, 0, 3], [1, 2, 4, 6, 7, 8, 9, 10, 11]], id="two uneven shards"),
        pytest.param([[0, 1, 2, 3, 4, 5], [], [11], [6, 7, 8, 9, 10]], id="four, one of them empty"),
    ],
)
def test_every_rank_has_the_model_of_all_the_data(
    shards: list[list[int]], tmp_path: Path, whole: str
) -> None:
    """Bit for bit, states and model, whatever the sizes of the shards and the order within them."""
    results = run(shards, tmp_path)
    assert [result["model"] for result in results] == [whole] * len(shards)
    assert [result["batches"] for result in results] == [12] * len(shards)


def test_a_rank_that_fails_is_named_on_all_ranks(tmp_path: Path) -> None:
    """It tells which of its batches does not fit; the others which rank it was. Each keeps what it saw."""
    first, second = run([[0, 1, 2], [3, 4]], tmp_path, fails=1)
    assert "Batch 1 " in second["error"]
    assert "Rank 1 failed" in first["error"]
    assert "Batch 1 " in first["error"]
    assert (first["seen"], second["seen"]) == (3, 1)


def test_a_rank_that_dies_does_not_leave_the_others_waiting(tmp_path: Path) -> None:
    """Killed in the middle: no rank has a model and none hangs; who can still speak says what happened."""
    results = run([[0, 1, 2], [3, 4, 5]], tmp_path, dies=1)
    assert results[1] == {}
    assert "model" not in results[0]
    if results[0]:  # torchrun ends the other ranks when one is killed, often before they can say anything
        assert "cannot be reached any more" in results[0]["error"]


def test_who_is_left_says_that_a_rank_is_gone(tmp_path: Path) -> None:
    """Without torchrun, which ends everybody: the error of ours, and not that of the network alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    one = command([[0, 1, 2]], tmp_path, {"dies": 1})
    one[2] = json.dumps([[0, 1, 2], [3, 4, 5]])
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(one, env={**os.environ, **settings, "RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for process in ranks:
        process.communicate(timeout=300)
    result = json.loads((tmp_path / "0.json").read_text())
    assert "cannot be reached any more" in result["error"]
    assert result["seen"] == 3


def test_ranks_with_different_models_are_refused_before_the_data(tmp_path: Path) -> None:
    """Other weights on one rank: an error on every rank, which says what differs."""
    for rank, result in enumerate(run([[0], [1]], tmp_path, **{"other weights": True})):
        assert (
            f"Rank {1 - rank} calibrates another model than rank {rank}, with other weights"
            in result["error"]
        )
        assert result["seen"] == 0


# ----------------------------------------------------------------------------------------------------------
# A group of one, in this process
# ----------------------------------------------------------------------------------------------------------

BATCHES = [normal(2, 4, seed=seed) for seed in range(4)]


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield dist.group.WORLD
    dist.destroy_process_group()


def prepared_linear(observer: str = "histogram") -> GraphModule:
    """A linear whose output is observed."""
    torch.manual_seed(0)
    return prepare(torch.nn.Linear(4, 4), outputs_of("linear"), BATCHES[0], observer=observer)


def state_of(prepared: GraphModule) -> Observer:
    """The only observer."""
    (point,) = observed_points(prepared).values()
    return point.observer


def test_what_was_seen_before_counts_once(group: dist.ProcessGroup) -> None:
    """A call without a group, and two with it, are one calibration with all the data."""
    prepared = tq.calibrate(prepared_linear(), BATCHES[:1])
    tq.calibrate(prepared, BATCHES[1:3], group=group)
    tq.calibrate(prepared, BATCHES[3:], group=group)
    assert same_state(state_of(prepared), state_of(tq.calibrate(prepared_linear(), BATCHES)))
    assert tq.calibration_of(prepared).batches == 4


def test_each_rank_has_a_checkpoint_of_its_own(group: dist.ProcessGroup, tmp_path: Path) -> None:
    """It goes by the rank, holds what the rank saw in this call, and is gone on from."""
    before = tq.calibrate(prepared_linear(), BATCHES[:1])
    tq.calibrate(before, BATCHES[1:3], group=group, checkpoint=tmp_path / "state")
    file = tmp_path / "state.rank-0-of-1"
    assert load_checkpoint(file)["batches"] == 2
    again = tq.calibrate(prepared_linear(), BATCHES[:1])
    tq.calibrate(again, BATCHES[1:], group=group, checkpoint=tmp_path / "state")
    assert load_checkpoint(file)["batches"] == 3
    assert same_state(state_of(again), state_of(tq.calibrate(prepared_linear(), BATCHES)))


def test_a_percentile_is_the_same_after_merging(group: dist.ProcessGroup) -> None:
    """The observers that begin anew on each rank are made like those of the model."""
    prepared = tq.calibrate(prepared_linear("percentile:90"), BATCHES, group=group)
    assert same_state(state_of(prepared), state_of(tq.calibrate(prepared_linear("percentile:90"), BATCHES)))


def test_an_observer_that_depends_on_the_order_is_refused(group: dist.ProcessGroup) -> None:
    """Before any data is read."""
    with pytest.raises(tq.CalibrationError, match="order of the data"):
        tq.calibrate(prepared_linear("moving_average"), iter(()), group=group)


def test_no_data_on_any_rank_is_an_error(group: dist.ProcessGroup) -> None:
    """As it is in one process."""
    with pytest.raises(tq.CalibrationError, match="on any rank"):
        tq.calibrate(prepared_linear(), [], group=group)


def test_an_interrupt_leaves_what_this_rank_saw(group: dist.ProcessGroup) -> None:
    """The model keeps what it had seen before and what it saw until then."""

    def interrupted() -> Iterator[torch.Tensor]:
        yield from BATCHES[1:3]
        raise KeyboardInterrupt

    prepared = tq.calibrate(prepared_linear(), BATCHES[:1])
    with pytest.raises(KeyboardInterrupt):
        tq.calibrate(prepared, interrupted(), group=group)
    assert same_state(state_of(prepared), state_of(tq.calibrate(prepared_linear(), BATCHES[:3])))


def test_a_group_is_a_process_group() -> None:
    """An object that is no process group is refused by name, before anything else."""
    with pytest.raises(tq.CalibrationError, match="process group"):
        tq.calibrate(prepared_linear(), BATCHES, group="WORLD")  # type: ignore[arg-type]
