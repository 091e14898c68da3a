"""The files beside a stored program. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torchquilt.errors import ProgramError
from torchquilt.lowering.target import DividedTarget, Runner, Target


def opened(runtime: Target, buffer: bytes, files: Mapping[str, bytes], libraries: Sequence[str]) -> Runner:
    """A stored program with the files beside it, ready to run.

    Raises:
        ProgramError: the program is damaged, or the target made files that it cannot read.
    """
    if not files:
        return runtime.open(buffer, libraries)
    if isinstance(runtime, DividedTarget):
        return runtime.open_with(buffer, files, libraries)
    raise ProgramError(
        f"{type(runtime).__name__} made files beside a program, and does not read them.",
        expected="a torchquilt.backend.DividedTarget, with files_of and open_with",
        got=f"files {', '.join(files)}, and open alone",
        remedy="tell the author of the target",
    )


def files_beside(runtime: Target, path: Path, buffer: bytes) -> dict[str, bytes]:
    """The files that a stored program needs, from its folder: name → content.

    Raises:
        ProgramError: one is missing, or would lie in another folder.
    """
    names = runtime.files_of(buffer) if isinstance(runtime, DividedTarget) else ()
    return {name: content_of(path, name) for name in names}


def content_of(path: Path, name: str) -> bytes:
    """Content of a file beside a program.

    Raises:
        ProgramError: it is missing, or would lie in another folder.
    """
    if not name or name in (".", "..") or "/" in name or "\\" in name:
        raise ProgramError(
            "The program wants a file of another folder.",
            path=path,
            expected="the name of a file beside it",
            got=repr(name),
            remedy="write it again, with its weights in the same folder",
        )
    try:
        return path.with_name(name).read_bytes()
    except FileNotFoundError as error:
        raise ProgramError(
            f"The program needs the file {name!r} beside it.",
            path=path,
            expected="both files in one folder, as save wrote them",
            got="no such file",
            remedy="copy both, or lower and save the model again",
        ) from error
