"""Progress on a terminal: one at a time, and none elsewhere."""

from __future__ import annotations

import sys

import pytest

from terminals import Terminal

CODE = """
import sys
from torchquilt._internal.terminal import progress, working
{hide}
with {outer}:
    with progress("inner", 3, "batches") as show:
        for done in range(3):
            show(done + 1)
with working("after"):
    pass
print("done")
"""
HIDE_RICH = "import importlib.util; importlib.util.find_spec = lambda name: None"
OUTER = {"a bar": 'progress("outer", 2)', "a step": 'working("outer")'}


@pytest.mark.parametrize("hide", ["", HIDE_RICH], ids=["rich", "plain"])
@pytest.mark.parametrize("outer", OUTER)
def test_a_part_of_a_step_shows_no_progress_of_its_own(outer: str, hide: str) -> None:
    """Two at a time would write over each other (rich refuses them); what comes later is shown again."""
    terminal = Terminal.run(sys.executable, "-c", CODE.format(outer=OUTER[outer], hide=hide))
    assert terminal.finish() == 0, terminal.text
    assert "done" in terminal.words
    assert "inner" not in terminal.words
    assert "after" in terminal.words


def test_nothing_is_shown_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither bar nor step."""
    exec(CODE.format(outer=OUTER["a step"], hide=""), {})
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("done\n", "")


ABANDONED = """
from torchquilt._internal.terminal import working
from torchquilt.accuracy.running import run_on_each

def fails(batch, number):
    raise ValueError("batch")

try:
    run_on_each([1, 2], fails, "first")
except ValueError as error:
    kept = error
with working("second"):
    pass
"""


def test_progress_ends_with_the_error_that_ends_its_step() -> None:
    """Progress that comes later is shown, also while somebody, such as a notebook, keeps the error."""
    terminal = Terminal.run(sys.executable, "-c", ABANDONED)
    assert terminal.finish() == 0, terminal.text
    assert "second" in terminal.words
