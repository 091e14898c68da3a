"""Training with DistributedDataParallel: all ranks end in one state, and convert to one model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

#: What each rank does. It writes digests of what it ended in, and the range of the input after each step.
PROGRAM = """
import contextlib, hashlib, json, pathlib, sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import torchquilt as tq

torch.set_num_threads(1)
folder, options = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
rank = dist.get_rank()


def batch(seed):
    return torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * (seed + 1)


torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten(),
    nn.Linear(16, 2),
)
exported = torch.export.export(model.train(), (batch(0),))
quantizer = tq.quantizer("xnnpack", "static_int8_per_channel")
prepared = tq.prepare_qat_pt2e(exported, quantizer, fake_quantize=options["choice"])
parallel = DistributedDataParallel(prepared)
optimizer = torch.optim.SGD(parallel.parameters(), 0.001, momentum=0.9)
ranges = []
for step in range(4):
    waits = options["accumulates"] and step % 2 == 0
    with parallel.no_sync() if waits else contextlib.nullcontext():
        parallel(batch(2 * step + rank)).square().mean().backward()
    if not waits:
        optimizer.step()
        optimizer.zero_grad()
    if options["choice"] != "learned":
        ranges.append([float(prepared.quantization_point_0.low), float(prepared.quantization_point_0.high)])


def digest(state):
    held = [name.encode() + value.detach().numpy().tobytes() for name, value in sorted(state.items())]
    return hashlib.sha256(b"".join(held)).hexdigest()


converted = tq.convert_pt2e(prepared.eval())
result = {
    "state": digest(prepared.state_dict()),
    "converted": digest(converted.state_dict()),
    "code": converted.code,
    "ranges": ranges,
}
(folder / f"{rank}.json").write_text(json.dumps(result))
dist.destroy_process_group()
"""


def run(folder: Path, **options: Any) -> list[dict[str, Any]]:
    """State that each of two ranks ended in."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = subprocess.run(
        [*command, str(program), str(folder), json.dumps(options)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("accumulates", [False, True])
@pytest.mark.parametrize("choice", ["moving_average:0.5", "learned"])
def test_ranks_end_in_one_state(choice: str, accumulates: bool, tmp_path: Path) -> None:
    """Ranges, running statistics, weights and the converted model are the same bits on both ranks."""
    first, second = run(tmp_path, choice=choice, accumulates=accumulates)
    assert first == second


def test_ranges_are_those_of_one_process_with_all_the_data(tmp_path: Path) -> None:
    """After each step the range has moved towards the smallest and largest value on any rank."""
    found, _ = run(tmp_path, choice="moving_average:0.5", accumulates=False)

    def batch(seed: int) -> torch.Tensor:
        return torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * (seed + 1)

    low = high = torch.tensor(0.0)
    for step, (there_low, there_high) in enumerate(found["ranges"]):
        both = torch.cat([batch(2 * step), batch(2 * step + 1)])
        share = 1.0 if step == 0 else 0.5
        low, high = low + share * (both.min() - low), high + share * (both.max() - high)
        assert there_low == pytest.approx(float(low), rel=1e-6)
        assert there_high == pytest.approx(float(high), rel=1e-6)
