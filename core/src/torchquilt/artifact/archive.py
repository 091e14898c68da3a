"""Finding the lock in a file, and saying what a file is that has none.

Importing this module does not import torch, and neither does reading a lock: a ``.pt2`` file is a zip.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from torchquilt.artifact.lock import Lock
from torchquilt.errors import ArtifactError

#: Name of the lock among the extra files of the archive.
LOCK_NAME = "torchquilt.json"
#: Where that is below the root folder of the archive.
LOCK_ENTRY = f"extra/{LOCK_NAME}"
#: The program. torch calls it "model" unless an archive has several.
PROGRAM_ENTRY = "models/model.json"

# What zipfile raises for archives that are damaged, or made to trouble it.
_ZIP_FAILURES = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    MemoryError,
)


def read_lock(path: str | os.PathLike[str]) -> Lock:
    """Read only the lock of a saved model. Needs no torch, and reads no more of the file than it has to.

    What else is in the file is not looked at: whether it is what the lock says is checked by
    :func:`torchquilt.load`.

    Args:
        path: a file that :func:`torchquilt.save` wrote.

    Raises:
        ArtifactError: the file is damaged, is something else, or has no lock.
        OSError: it cannot be opened.
    """
    with Path(path).open("rb") as file, about(path):
        return lock_in(file)


@contextlib.contextmanager
def about(path: str | os.PathLike[str]) -> Iterator[None]:
    """Have errors of the block say which file they are about."""
    try:
        yield
    except ArtifactError as error:
        if error.path is None:
            error.path = os.fspath(path)
            error.problem = f"{error.path}: {error.problem}"
        raise


def check_is_program(file: BinaryIO) -> None:
    """Refuse a file that is no saved program; whether it has a lock makes no difference.

    Raises:
        ArtifactError: it is damaged, or something else.
    """
    with _opened(file) as archive:
        _root_folder(archive.namelist())


def lock_in(file: BinaryIO) -> Lock:
    """The lock of an open file.

    Raises:
        ArtifactError: as :func:`read_lock`.
    """
    with _opened(file) as archive:
        entry = _lock_entry(archive.namelist())
        info = archive.getinfo(entry)
        if info.compress_type != zipfile.ZIP_STORED:
            raise ArtifactError(
                "The lock is compressed.",
                expected="an archive as torch.export.save writes it, with nothing compressed",
                got=f"{entry}, compression method {info.compress_type}",
            )
        text = archive.read(info).decode()
    return Lock.from_json(text)


@contextlib.contextmanager
def _opened(file: BinaryIO) -> Iterator[zipfile.ZipFile]:
    """The file as an archive; whatever is wrong with it on the way is an error that says what it is."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except ArtifactError:
        raise
    except _ZIP_FAILURES as error:
        raise _damaged(file, error) from error


def _root_folder(names: list[str]) -> str:
    """The one folder that all of a saved program lies in."""
    roots = sorted({name.partition("/")[0] for name in names})
    (root, *others) = roots or [""]
    if f"{root}/{PROGRAM_ENTRY}" not in names or others:
        pickled = any(name.endswith("/data.pkl") for name in names)
        raise ArtifactError(
            "This is not a saved program.",
            expected="a .pt2 file that torchquilt.save or torch.export.save wrote",
            got="a pickle in a zip archive, as torch.save writes it"
            if pickled
            else f"a zip archive of {len(names)} entries without {PROGRAM_ENTRY}",
            remedy="what torch.save wrote is read by torch.load" if pickled else None,
        )
    if len(set(names)) != len(names):
        raise ArtifactError(
            "The archive has several entries of one name, so readers may see different things in it.",
            got=", ".join(sorted({name for name in names if names.count(name) > 1})),
            remedy="get the file again from where it was saved",
        )
    return root


def _lock_entry(names: list[str]) -> str:
    """The full name of the lock, in an archive that is a saved program."""
    root = _root_folder(names)
    if f"{root}/{LOCK_ENTRY}" not in names:
        raise ArtifactError(
            "This is a saved program without a lock of torchquilt.",
            expected=f"the entry {LOCK_ENTRY}, which torchquilt.save writes",
            got=f"{len(names)} entries without it",
            remedy="if you trust the file (torch unpickles what is in it), read it with torch.export.load "
            "and save it with torchquilt.save",
        )
    return f"{root}/{LOCK_ENTRY}"


def _damaged(file: BinaryIO, error: Exception) -> ArtifactError:
    """Describe a file that is no readable zip archive."""
    file.seek(0)
    begin = file.read(4)
    if not begin:
        got = "an empty file"
    elif begin.startswith(b"PK"):
        got = f"a zip archive that is cut off or damaged ({error})"
    elif begin.startswith(b"\x80"):
        got = "a pickle"
    else:
        got = f"a file that is no zip archive (it begins with {begin!r})"
    return ArtifactError(
        "This is not a file that can be loaded.",
        expected="a .pt2 file that torchquilt.save or torch.export.save wrote",
        got=got,
        remedy="get the file again from where it was saved",
    )
