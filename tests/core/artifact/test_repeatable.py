"""A file holds the model and nothing of the process: no addresses, no time, no memory beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from artifacts import X, entries_of, in_fresh_python

FLOW = """
import hashlib, sys
from pathlib import Path
import torch, torchquilt as tq
from torch import nn
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config as symmetric
def made(path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), torch.randn(2, 16)
    prepared = tq.prepare_pt2e(torch.export.export(model, (x,)), XNNPACKQuantizer().set_global(symmetric()))
    prepared(x)
    lock = tq.save(tq.convert_pt2e(prepared), path, (x,))
    return hashlib.sha256(Path(path).read_bytes()).hexdigest(), lock.sha256
print(*made(sys.argv[1]), *made(sys.argv[1]))
"""


def test_two_runs_write_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process and in two, whatever the order of sets in them; the lock has one digest."""
    told = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        done = in_fresh_python(FLOW, tmp_path / "model.pt2")
        assert done.returncode == 0, done.stderr
        told += done.stdout.split()
    files, locks = {*told[::2]}, {*told[1::2]}
    assert (len(told), len(files), len(locks)) == (8, 1, 1)


def test_saving_leaves_the_origins_of_nodes(linear: GraphModule, tmp_path: Path) -> None:
    """They are numbered in the file alone."""
    program = torch.export.export(linear, (X,) if isinstance(X, torch.Tensor) else X)
    before = [node.meta.get("from_node") for node in program.graph.nodes]
    tq.save(program, tmp_path / "model.pt2")
    assert all(
        one is other
        for one, other in zip(
            before, (node.meta.get("from_node") for node in program.graph.nodes), strict=True
        )
    )


class Table(nn.Module):
    """Adds a part of a large table, twice."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("part", table[:8])
        self.register_buffer("again", self.part)
        self.weight = nn.Parameter(table[8:16, 0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of all."""
        return x + self.part[:, 0] + self.again[:, 1] + self.weight


def test_memory_beside_a_slice_is_not_written(tmp_path: Path) -> None:
    """Of an example that is a slice of a data set, and of a buffer of a table: what the model reads."""
    data, table = torch.randn(5000, 8), torch.randn(4000, 4)
    program = torch.export.export(Table(table).eval(), (data[:2],))
    lock = tq.save(program, tmp_path / "model.pt2")
    assert (tmp_path / "model.pt2").stat().st_size < 40_000
    loaded = tq.load(tmp_path / "model.pt2")
    assert torch.equal(loaded.module()(data[:2]), program.module()(data[:2]))
    assert loaded.program.example_inputs is not None
    assert torch.equal(loaded.program.example_inputs[0][0], data[:2])
    entries = {tensor.name: tensor.entry for tensor in lock.tensors}
    assert entries["part"] == entries["again"]
    assert program.state_dict["part"].untyped_storage().nbytes() == table.nbytes


def test_a_tensor_that_is_whole_is_written_as_it_is(saved: Path, linear: GraphModule, tmp_path: Path) -> None:
    """Saving what was loaded gives the tensors that were there."""
    tq.save(tq.load(saved).program, tmp_path / "again.pt2")
    digests = [
        {
            name: hashlib.sha256(data).hexdigest()
            for name, data in entries_of(path).items()
            if "weight_" in name
        }
        for path in (saved, tmp_path / "again.pt2")
    ]
    assert digests[0] == digests[1] != {}
