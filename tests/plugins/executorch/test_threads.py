"""Programs that several threads run at once, as in a server, and copies of them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

import torchquilt as tq
from plugins.executorch.models import Counter, converted, xnnpack
from plugins.executorch.test_process import in_a_process
from strategies import normal
from torchquilt.lowering import load

X = normal(4, 3, 8, 8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program in a file, of which no runner has been made."""
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 8))
    path = tmp_path_factory.mktemp("threads") / "model.pte"
    tq.lower(converted(module, xnnpack(), X), (X,)).save(path)
    return path


@pytest.mark.long
def test_the_first_run_may_be_in_many_threads(saved: Path) -> None:
    """In a fresh process, whose runtime has loaded nothing: all come back, with what one of them gets."""
    code = """
        import faulthandler
        from concurrent.futures import ThreadPoolExecutor
        faulthandler.dump_traceback_later(60, exit=True)
        torch.manual_seed(0)
        x = torch.randn(4, 3, 8, 8)
        programs = [load(PATH) for _ in range(4)]
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda number: programs[number % 4].run(x), range(64)))
        print(len(found), all(torch.equal(one, load(PATH).run(x)) for one in found))
    """
    assert in_a_process(code, saved) == ["64 True"]


def test_each_thread_gets_what_its_own_input_gives(saved: Path) -> None:
    """One program, sixteen threads, other inputs in each."""
    program = load(saved)
    inputs = [normal(4, 3, 8, 8, seed=seed) for seed in range(32)]
    alone = load(saved)
    expected = [alone.run(x) for x in inputs]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(program.run, inputs))
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_of_a_program_begins_anew(copied: Callable[[tq.LoweredProgram], tq.LoweredProgram]) -> None:
    """It runs like the program did at first, with a state of its own, also where that has run."""
    x = normal(2, 4)
    program = tq.lower(converted(Counter(), xnnpack(), x), (x,))
    first = program.run(x)
    other = copied(program)
    assert torch.equal(other.run(x), first)
    assert not torch.equal(program.run(x), first)
