"""Writing: a file is there whole or not at all, whatever happens in the meantime."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.fx import GraphModule

import torchquilt as tq
from artifacts import LOCK, X, entries_of, in_fresh_python
from torchquilt._internal.atomic_files import replacing
from torchquilt.artifact import saving
from torchquilt.pt2e.calibration import checkpoint

# ----------------------------------------------------------------------------------------------------------
# Whole or not at all
# ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file(saved: Path) -> None:
    """Wherever the room ends, the error is ours, the process lives, and the old file is all that is there."""
    size = saved.stat().st_size
    lock = len(entries_of(saved)[LOCK])
    limits = [0, 100, 3000, size - lock - 500, size - lock, size - 1]
    code = """
import json, resource, sys
from pathlib import Path
import torchquilt as tq
path = Path(sys.argv[1])
program, before = tq.load(path).program, path.read_bytes()
for limit in json.loads(sys.argv[2]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        tq.save(program, path)
    except tq.ArtifactError as error:
        assert isinstance(error.__cause__, OSError), error.__cause__
        assert "untouched" in str(error), error
    else:
        raise AssertionError(limit)
    assert path.read_bytes() == before, limit
    assert list(path.parent.iterdir()) == [path], limit
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
tq.save(program, path)
"""
    done = in_fresh_python(code, saved, json.dumps(limits))
    assert done.returncode == 0, done.stderr
    tq.load(saved)


def knows_nameless_files(folder: Path) -> bool:
    """Whether the file system can write a file that has no name yet."""
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR))
    except (OSError, AttributeError):
        return False
    return True


def test_a_process_that_is_killed_leaves_the_old_file(saved: Path) -> None:
    """Killed while torch writes or when all is written: the old file is there, and if possible no other."""
    code = """
import os, signal, sys
from pathlib import Path
import torchquilt as tq
from torchquilt.artifact import saving
path = Path(sys.argv[1])
program, before = tq.load(path).program, path.read_bytes()
for owner, name in ((saving._Sink, "write"), (os, "fsync")):
    child = os.fork()
    if child == 0:
        setattr(owner, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        tq.save(program, path)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL, name
    assert path.read_bytes() == before, name
    print(len(list(path.parent.iterdir())))
"""
    done = in_fresh_python(code, saved)
    assert done.returncode == 0, done.stderr
    if knows_nameless_files(saved.parent):
        assert done.stdout.split() == ["1", "1"]


@pytest.mark.parametrize("nameless", [True, False], ids=["nameless", "named"])
def test_an_interruption_leaves_the_old_file(
    saved: Path, linear: GraphModule, monkeypatch: pytest.MonkeyPatch, nameless: bool
) -> None:
    """Ctrl-C in the midst of writing comes out as such, also where files have names from the start."""
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    before = saved.read_bytes()
    seen = []

    class Interrupted(saving._Sink):
        def __init__(self, file: Any) -> None:
            seen.append(len(list(saved.parent.iterdir())))
            super().__init__(SimpleNamespace(write=self.interrupt, seek=file.seek))

        def interrupt(self, data: Any) -> int:
            raise KeyboardInterrupt

    monkeypatch.setattr(saving, "_Sink", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        tq.save(linear, saved, X)
    assert seen == [1 if nameless and knows_nameless_files(saved.parent) else 2]
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("nameless", [True, False], ids=["nameless", "named"])
def test_a_new_file_has_the_usual_rights_and_an_old_one_keeps_its_own(
    linear: GraphModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nameless: bool
) -> None:
    """As if the file had been opened and written, and not replaced."""
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    plain, path = tmp_path / "plain", tmp_path / "model.pt2"
    plain.touch()
    tq.save(linear, path, X)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    path.chmod(0o640)
    tq.save(linear, path, X)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_stays_a_link(linear: GraphModule, tmp_path: Path) -> None:
    """The file that it leads to is replaced."""
    (tmp_path / "folder").mkdir()
    link = tmp_path / "latest.pt2"
    link.symlink_to(tmp_path / "folder/model.pt2")
    tq.save(linear, link, X)
    assert link.is_symlink()
    tq.load(tmp_path / "folder/model.pt2")


def test_a_folder_that_is_not_there_is_an_error_of_ours(linear: GraphModule, tmp_path: Path) -> None:
    """With the path in it."""
    with pytest.raises(tq.ArtifactError, match="could not be written") as caught:
        tq.save(linear, tmp_path / "nowhere/model.pt2", X)
    assert caught.value.path == str(tmp_path / "nowhere/model.pt2")


# ----------------------------------------------------------------------------------------------------------
# What is no regular file
# ----------------------------------------------------------------------------------------------------------


def special(kind: str, path: Path) -> Path:
    """Something else than a file, under a name in a folder of its own."""
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    else:
        os.mkfifo(path.with_name("target"))
        path.symlink_to(path.with_name("target"))
    return path


@pytest.mark.parametrize("kind", ["FIFO", "folder", "socket", "link to a FIFO"])
def test_what_is_no_file_is_refused_before_work_begins(
    linear: GraphModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """By all that writes: models, checkpoints, recipes, and the writing of files itself. It stays there."""
    monkeypatch.chdir(tmp_path)  # the name of a socket may not be long
    path = special(kind, Path("here"))
    before = path.stat().st_mode
    monkeypatch.setattr(saving, "_program", lambda *_: pytest.fail("work has begun"))
    monkeypatch.setattr(checkpoint, "identity_of", lambda *_: pytest.fail("work has begun"))
    with pytest.raises(tq.ArtifactError, match="could not be written") as caught:
        tq.save(linear, path, X)
    assert "no regular file" in str(caught.value.got)
    with pytest.raises(OSError, match="no regular file"):
        checkpoint.Checkpoint(linear, path)
    with pytest.raises(tq.RecipeError, match="cannot be written"):
        tq.Recipe.of(tq.quantizer("xnnpack", "dynamic_int8")).save(path)
    with pytest.raises(OSError, match="no regular file"), replacing(path):
        pytest.fail("it has been opened")
    assert path.stat().st_mode == before
    assert {one.name for one in tmp_path.iterdir()} <= {"here", "target"}


def test_a_file_that_becomes_something_else_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    """It is looked at again before the new file takes its name."""
    path = tmp_path / "file"
    block = replacing(path)
    block.__enter__().write(b"content")
    os.mkfifo(path)
    with pytest.raises(OSError, match="no regular file"):
        block.__exit__(None, None, None)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert [*tmp_path.iterdir()] == [path]
