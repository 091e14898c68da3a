"""load: read a saved model, and hand it out only if it is what the lock says."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import attrs

from torchquilt._internal.torch_defaults import default_global_state
from torchquilt.artifact import screening
from torchquilt.artifact.archive import LOCK_ENTRY, PROGRAM_ENTRY, about, check_is_program, lock_in
from torchquilt.artifact.lock import Change, Lock, contents_diff
from torchquilt.artifact.program import operator_counts, quantized_tensors, stored_tensors
from torchquilt.errors import ArtifactError

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule


@attrs.frozen(eq=False, repr=False)
class Artifact:
    """A saved model that was loaded and found to be what its lock says.

    Args:
        program: the ExportedProgram.
        lock: what made it.
    """

    program: ExportedProgram
    lock: Lock

    def __repr__(self) -> str:
        return f"<Artifact with {self.lock!r}; .program is its ExportedProgram>"

    def module(self) -> GraphModule:
        """A module that runs the program, made anew at each call; its tensors are those of the program."""
        return self.program.module()


@default_global_state()
def load(path: str | os.PathLike[str], *, sha256: str | None = None) -> Artifact:
    """Load what :func:`torchquilt.save` wrote, and check everything in it against the lock.

    No plugin is needed. Nothing in the file is executed: whatever torch would unpickle, import or evaluate is
    looked at before torch reads the file, and only plain tensors, names and arithmetic pass.

    The lock holds a digest of itself and of every entry of the file. That shows damage and careless edits. It
    cannot show that someone wrote another model and another lock: nothing in a file can. Against that, keep
    the ``sha256`` of the lock where an attacker who can write the file cannot reach it, and pass it here.

    Args:
        path: the file.
        sha256: the digest that the lock has to have, as ``save(...)`` and ``read_lock(path)`` say it.

    Raises:
        ArtifactError: the file is damaged, was changed, is something else, has no lock, could run code, or
            cannot be read by this torch. ``differences`` lists what is not as the lock says.
        OSError: the file cannot be opened.
    """
    # Registers the quantized_decomposed operators, which the program calls.
    from torchquilt._internal.torch_private import qdq_registration  # noqa: F401
    from torchquilt.pt2e.model_record import RECORD_KEY

    # One handle from first to last: a file that is replaced meanwhile cannot be checked here and read there.
    with Path(path).open("rb") as file, about(path):
        lock = lock_in(file)
        if sha256 is not None and lock.sha256 != sha256:
            raise ArtifactError(
                "This is not the file that was asked for: its lock has another digest.",
                expected=f"sha256 {sha256}",
                got=f"sha256 {lock.sha256}",
                remedy="get the file again from where it was saved",
            )
        _check_entries(_reader(file), lock)
        program = _deserialized(file, f"what torch {lock.torch} wrote", f"load it with torch {lock.torch}")
        _check_contents(program, lock)
    program.graph_module.meta[RECORD_KEY] = _record(lock)
    return Artifact(program, lock)


@default_global_state()
def load_program(path: str | os.PathLike[str]) -> ExportedProgram:
    """Load what ``torch.export.save`` wrote, such as the float model, without a lock to check it against.

    Nothing in the file is executed, as with :func:`load`. So a program whose example inputs or whose
    structure of inputs holds objects that would be unpickled or imported is refused.

    Args:
        path: the file.

    Raises:
        ArtifactError: the file is damaged, is something else, could run code, or is none that torch reads.
        OSError: the file cannot be opened.
    """
    # Registers the quantized_decomposed operators, so that a quantized program is told to be one.
    from torchquilt._internal.torch_private import qdq_registration  # noqa: F401

    with Path(path).open("rb") as file, about(path):
        check_is_program(file)
        reader = _reader(file)
        _screen(reader, list(_guarded("the list of entries", reader.get_file_names)))
        return _deserialized(file, "a program of this version", "load it with the torch that wrote it")


def _record(lock: Lock) -> dict[str, Any]:
    """Record of how a converted model came about, so that it can be saved again and still say it."""
    return {
        "quantizer": lock.quantizer,
        "recipe": lock.recipe,
        "backends": [plugin.backend for plugin in lock.plugins],
        "capabilities": lock.capabilities,
        "ledger": None if lock.ledger_json is None else json.loads(lock.ledger_json),
    }


# ----------------------------------------------------------------------------------------------------------
# Before torch makes anything of the file
# ----------------------------------------------------------------------------------------------------------


def _reader(file: BinaryIO) -> Any:
    """The reader of archives that torch uses: what is checked is what torch will see, to the byte."""
    from torch.export.pt2_archive import PT2ArchiveReader

    file.seek(0)
    return _guarded("the list of entries", lambda: PT2ArchiveReader(file))


def _guarded(what: str, read: Any) -> Any:
    try:
        return read()
    except Exception as error:  # the reader is C++, and says so in several ways
        raise ArtifactError(
            f"{what} cannot be read: the file is cut off or damaged.",
            expected="an archive as torch.export.save writes it",
            got=str(error).partition("\n")[0],
            remedy="get the file again from where it was saved",
        ) from error


def _check_entries(reader: Any, lock: Lock) -> None:
    """Refuse entries that are not what the lock says, then what could run code.

    Raises:
        ArtifactError: an entry is missing, is one too many, differs, or is unsafe.
    """
    names = list(_guarded("the list of entries", reader.get_file_names))
    seen = Lock.from_json(_guarded("the lock", lambda: reader.read_bytes(LOCK_ENTRY).decode()))
    if seen != lock:
        raise _differ([Change("lock", "", "sha256", lock.sha256, seen.sha256)])
    differences = list(_entry_differences(reader, names, lock))
    if differences:
        raise _differ(differences)
    _screen(reader, names)


def _screen(reader: Any, names: list[str]) -> None:
    """Refuse what could run code when torch reads it.

    Raises:
        ArtifactError: there is something, or an entry cannot be read.
    """

    def content(name: str) -> bytes:
        found: bytes = _guarded(f"the entry {name}", lambda: reader.read_bytes(name))
        return found

    screening.check_entries(names)
    for entry in screening.PAYLOAD_ENTRIES.values():
        screening.check_payloads(content(entry))
    screening.check_program(content(PROGRAM_ENTRY))
    if screening.INPUTS_ENTRY in names:
        screening.check_inputs(content(screening.INPUTS_ENTRY))


def _entry_differences(reader: Any, names: list[str], lock: Lock) -> Iterator[Change]:
    expected = {entry.name: entry for entry in lock.entries}
    for name in names:
        if name not in expected and name != LOCK_ENTRY:
            yield Change("entry", name, "", None, "not in the lock")
    for name, entry in expected.items():
        subject, which = _subject(name, lock)
        if name not in names:
            yield Change(subject, which, "", f"{entry.nbytes} bytes", None)
            continue
        try:
            content = reader.read_bytes(name)
        except Exception as error:  # a checksum of the archive itself, most often
            got = f"unreadable ({str(error).partition(chr(10))[0]})"
            yield Change(subject, which, "content", f"sha256 {entry.sha256}", got)
            continue
        digest = hashlib.sha256(content).hexdigest()
        if digest != entry.sha256:
            yield Change(subject, which, "sha256", entry.sha256, digest)


def _subject(entry: str, lock: Lock) -> tuple[str, str]:
    """Describe an entry to the reader of an error: the tensors that it holds, or a part of the program."""
    tensors = [tensor.name for tensor in lock.tensors if tensor.entry == entry]
    if tensors:
        return "tensor", " = ".join(tensors)
    known = {PROGRAM_ENTRY: "program", screening.INPUTS_ENTRY: "example inputs"}
    return known.get(entry, "entry"), entry


def _differ(differences: list[Change]) -> ArtifactError:
    first, *others = differences
    more = f", and {len(others)} more" if others else ""
    what = " ".join(filter(None, (first.subject, first.name, first.field)))
    return ArtifactError(
        f"The file is not what was saved: {what}{more}.",
        differences=tuple(differences),
        expected=first.before if first.before is not None else "no such thing",
        got=first.after if first.after is not None else "no such thing",
        remedy="get the file again from where it was saved",
    )


# ----------------------------------------------------------------------------------------------------------
# What torch makes of it
# ----------------------------------------------------------------------------------------------------------


def _deserialized(file: BinaryIO, expected: str, remedy: str) -> ExportedProgram:
    import torch

    file.seek(0)
    try:
        return torch.export.load(file)
    except Exception as error:
        raise ArtifactError(
            "torch cannot read this program.",
            expected=expected,
            got=f"torch {torch.__version__} here: {type(error).__name__}: {error}",
            remedy=f"{remedy}; see the cause above",
        ) from error


def _check_contents(program: ExportedProgram, lock: Lock) -> None:
    """Refuse a program that came out of the file other than it went in.

    Raises:
        ArtifactError: a tensor, the parameters of one, or what is called differs.
    """
    found = attrs.evolve(
        lock,
        quantized=quantized_tensors(program),
        tensors=stored_tensors(program, {}),
        operators=operator_counts(program),
    )
    differences = list(contents_diff(lock, found))
    if differences:
        raise _differ(differences)
