"""States of training in files: whole or not at all, and what is no such state is told."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from strategies import normal
from torchquilt.pt2e.qat.state_file import is_learned, load_state, read_state

#: Saves states without end; each step has all weights at its own number, and says so before it is saved.
PROGRAM = """
import sys
import torch
import torchquilt as tq

torch.set_num_threads(1)
torch.manual_seed(0)
exported = torch.export.export(torch.nn.Linear(64, 64).train(), (torch.ones(2, 64),))
model = tq.prepare_qat_pt2e(exported, tq.quantizer("xnnpack", "static_int8_per_channel"))
step = 0
while True:
    with torch.no_grad():
        model.weight.fill_(step)
    tq.qat.save_state(sys.argv[1], model, step=step)
    print(step, flush=True)
    step += 1
"""


def prepared(choice: str = "moving_average", size: int = 4) -> GraphModule:
    """A linear, prepared for training."""
    torch.manual_seed(0)
    exported = torch.export.export(nn.Linear(size, 3).train(), (torch.ones(2, size),))
    quantizer = tq.quantizer("xnnpack", "static_int8_per_channel")
    return tq.prepare_qat_pt2e(exported, quantizer, fake_quantize=choice)


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_process_that_is_killed_loses_nothing_of_the_last_state(tmp_path: Path, seed: int) -> None:
    """Whenever it is killed, the file is the state of a step that was saved whole, and no earlier one."""
    path = tmp_path / "state.pt"
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    time.sleep(random.Random(seed).uniform(0.05, 0.5))
    process.send_signal(signal.SIGKILL)
    said = [0, *map(int, process.communicate(timeout=60)[0].split())]
    held = torch.load(path, weights_only=True)
    assert held["step"] in (said[-1], said[-1] + 1)
    assert bool((held["model"]["weight"] == held["step"]).all())
    left = [file.name for file in tmp_path.iterdir() if file.name != "state.pt"]
    # A new file has a name of its own for the moment before it takes that of the old one.
    assert all(name.startswith(".torchquilt-") for name in left)
    assert len(left) <= 1


@pytest.mark.parametrize("choice", ["moving_average", "learned"])
def test_a_state_comes_back(choice: str, tmp_path: Path) -> None:
    """From a file of ours or of torch.save, alone, under a key, or out of a wrapper."""
    model = prepared(choice)
    model(normal(2, 4))
    state = model.state_dict()
    path = tmp_path / "state.pt"
    tq.qat.save_state(path, torch.compile(model, backend="eager"), epoch=3)
    files = {
        "ours": torch.load(path, weights_only=True),
        "alone": state,
        "under a key": {"state_dict": state, "epoch": 3},
        "of a wrapper": {f"module._orig_mod.{name}": value for name, value in state.items()},
    }
    for held in files.values():
        torch.save(held, path)
        found = read_state(path)
        assert is_learned(found) is (choice == "learned")
        other = prepared(choice)
        load_state(other, found, path)
        assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize(
    ("held", "got"),
    [
        ({"weight": torch.ones(3, 4)}, "weight"),
        ({}, "an empty dict"),
        ([torch.ones(1)], "list"),
        (b"no file of torch", "UnpicklingError"),
    ],
)
def test_what_is_no_state_is_told(held: object, got: str, tmp_path: Path) -> None:
    """The error names the file, what is in it, and what to save instead."""
    path = tmp_path / "state.pt"
    if isinstance(held, bytes):
        path.write_bytes(held)
    else:
        torch.save(held, path)
    with pytest.raises(tq.ModelError) as caught:
        read_state(path)
    assert str(path) in caught.value.problem
    assert got in str(caught.value.got)


@pytest.mark.parametrize(("choice", "size"), [("learned", 4), ("moving_average", 5)])
def test_a_state_of_something_else_is_told(choice: str, size: int, tmp_path: Path) -> None:
    """Of another model, or of one whose ranges were found otherwise."""
    path = tmp_path / "state.pt"
    tq.qat.save_state(path, prepared())
    with pytest.raises(tq.ModelError) as caught:
        load_state(prepared(choice, size), read_state(path), path)
    assert str(path) in caught.value.problem
    assert "size mismatch" in str(caught.value.got) or "range" in str(caught.value.got)


def test_only_a_model_of_training_has_such_a_state(tmp_path: Path) -> None:
    """A float model is refused, and nothing is written."""
    with pytest.raises(tq.ModelError):
        tq.qat.save_state(tmp_path / "state.pt", nn.Linear(2, 2))
    assert not list(tmp_path.iterdir())
