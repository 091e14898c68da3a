"""Calibrations that are killed: what they left goes on, and ends like one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

#: Calibrates with forty batches that take their time, and writes all that was seen to a file in the end.
PROGRAM = """
import io, pathlib, sys, time
import torch
import torchquilt as tq
from torchquilt.pt2e.calibration import checkpoint
from torchquilt.pt2e.observer_points import observed_points
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

checkpoint.INTERVAL = 0.05
torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
prepared = tq.prepare_pt2e(torch.export.export(model.eval(), (torch.ones(8, 16),)), quantizer)


def batches():
    for seed in range(40):
        time.sleep(float(sys.argv[3]))
        print(seed, flush=True)
        yield torch.randn(8, 16, generator=torch.Generator().manual_seed(seed)) * (seed % 7 + 1)


path, result, _ = sys.argv[1:]
tq.calibrate(prepared, batches(), checkpoint=path or None)
state = {name: point.observer.state() for name, point in observed_points(prepared).items()}
content = io.BytesIO()  # what is saved to a file has the name of the file in it
torch.save(state, content)
pathlib.Path(result).write_bytes(content.getvalue())
"""


def run(*arguments: object) -> subprocess.Popen[str]:
    """The program in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the end, which has to be a good one."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.mark.long
def test_what_was_killed_at_random_ends_in_the_same_state(tmp_path: Path) -> None:
    """Killed twice and interrupted once, wherever it was, and then let through: the same bytes as without."""
    finish(run("", tmp_path / "whole", 0))
    chance = random.Random(0)
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL):
        process = run(tmp_path / "state", tmp_path / "result", 0.2)
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        time.sleep(chance.uniform(0.0, 0.5))
        process.send_signal(number)
        process.communicate(timeout=300)
        assert process.returncode != 0
        assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
    finish(run(tmp_path / "state", tmp_path / "result", 0))
    assert (tmp_path / "result").read_bytes() == (tmp_path / "whole").read_bytes()


def test_an_interrupt_writes_what_was_seen(tmp_path: Path) -> None:
    """Ctrl-C loses no batch: what goes on has as many behind it as the one before had begun."""
    process = run(tmp_path / "state", tmp_path / "result", 0.2)
    assert process.stdout is not None
    for _ in range(10):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert "KeyboardInterrupt" in err
    from torchquilt.pt2e.calibration.checkpoint import load_checkpoint

    assert load_checkpoint(tmp_path / "state")["batches"] >= 9
