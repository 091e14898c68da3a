"""Replacing a file whole or not at all. Importing this module does not import torch."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

#: What else a name may stand for, by the format in its mode.
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_is_replaceable(path: str | os.PathLike[str]) -> None:
    """Refuse to replace what is no regular file; to be called before work whose result is written there.

    A FIFO or a device would not be written to: a file would take its place, which as root goes through.

    Raises:
        OSError: something else has that name.
    """
    try:
        mode = Path(path).resolve().stat().st_mode
    except OSError:
        return  # nothing is there; what is wrong with the folder, writing says
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, f"This is {kind} and no regular file", os.fspath(path))


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a new file, to read and write, that replaces ``path`` when the block ends well.

    It lies in the same folder and is on the disk, whole, before it takes the name. Whatever happens before
    that (an exception, a full disk, the end of the process or of the machine) leaves what was there as it
    was. What is no regular file (a FIFO, a device, a folder) is refused. Where the system can (Linux, most
    file systems) the file has no name until then, so even a process that is killed leaves nothing.
    """
    check_is_replaceable(path)
    target = Path(path).resolve()
    temporary = target.with_name(f".torchquilt-{secrets.token_hex(8)}.tmp")
    file, is_named = _open(temporary)
    try:
        yield file
        file.flush()
        if target.exists():
            shutil.copymode(target, temporary if is_named else f"/proc/self/fd/{file.fileno()}")
        os.fsync(file.fileno())
        if not is_named:
            _give_name(file, temporary)
        file.close()
        check_is_replaceable(target)
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            file.close()  # it tries to write what is left, which fails again on a full disk
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _open(temporary: Path) -> tuple[BinaryIO, bool]:
    """A new file, and whether it has its name already."""
    if hasattr(os, "O_TMPFILE") and Path("/proc/self/fd").is_dir():
        # Not every file system knows it; what else is wrong, the other way of opening says better.
        with contextlib.suppress(OSError):
            descriptor = os.open(temporary.parent, os.O_TMPFILE | os.O_RDWR, 0o666)
            return cast(BinaryIO, os.fdopen(descriptor, "w+b")), False
    return cast(BinaryIO, temporary.open("x+b")), True


def _give_name(file: BinaryIO, name: Path) -> None:
    # Only linkat follows the link in /proc to the file, and Python calls it only where folders are open.
    folder = os.open(name.parent, os.O_RDONLY)
    try:
        os.link(f"/proc/self/fd/{file.fileno()}", name.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


def _sync_folder(folder: Path) -> None:
    """Have the new name on the disk as well. Systems that cannot do this for a folder do without."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
