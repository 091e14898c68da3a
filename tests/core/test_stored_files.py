"""Files beside a stored program: who reads them, and which are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from torchquilt import ProgramError
from torchquilt.lowering.stored_files import files_beside, opened


class Whole:
    """A target whose programs are one file."""

    def lower(self, program: Any, contributions: Any) -> Any:
        """Not asked for here."""
        raise NotImplementedError

    def open(self, buffer: bytes, libraries: Sequence[str]) -> Any:
        """The arguments, as they came."""
        return buffer, {}, tuple(libraries)


@attrs.frozen
class Divided(Whole):
    """A target whose programs name files, one in each line."""

    def files_of(self, buffer: bytes) -> tuple[str, ...]:
        """The lines of the program."""
        return tuple(buffer.decode().splitlines())

    def open_with(self, buffer: bytes, files: Mapping[str, bytes], libraries: Sequence[str]) -> Any:
        """The arguments, as they came."""
        return buffer, dict(files), tuple(libraries)


def test_a_divided_target_gets_its_files(tmp_path: Path) -> None:
    """They are read from the folder of the program, by the names in it."""
    (tmp_path / "weights").write_bytes(b"12")
    files = files_beside(Divided(), tmp_path / "program", b"weights")
    assert opened(Divided(), b"weights", files, ["kernels"]) == (b"weights", {"weights": b"12"}, ("kernels",))


@pytest.mark.parametrize("target", [Whole(), Divided()])
def test_a_program_without_files_is_opened_alone(target: Any, tmp_path: Path) -> None:
    """Of any target."""
    assert files_beside(target, tmp_path / "program", b"") == {}
    assert opened(target, b"", {}, []) == (b"", {}, ())


def test_a_target_that_does_not_read_its_files_is_refused() -> None:
    """The program would run without them, or not at all."""
    with pytest.raises(ProgramError) as caught:
        opened(Whole(), b"", {"weights": b""}, [])
    assert "Whole" in caught.value.problem
    assert "DividedTarget" in str(caught.value.expected)


def test_a_missing_file_is_named_with_the_program(tmp_path: Path) -> None:
    """The error has the path of the program and the name of the file."""
    with pytest.raises(ProgramError) as caught:
        files_beside(Divided(), tmp_path / "program", b"weights")
    assert "'weights'" in caught.value.problem
    assert str(caught.value.path) == str(tmp_path / "program")


@pytest.mark.parametrize("name", ["../weights", "a/weights", "a\\weights", "..", ".", "/etc/passwd"])
def test_no_file_of_another_folder_is_read(name: str, tmp_path: Path) -> None:
    """A program from elsewhere does not say which files of the machine are read."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "weights").write_bytes(b"")
    with pytest.raises(ProgramError, match="another folder"):
        files_beside(Divided(), tmp_path / "program", name.encode())
