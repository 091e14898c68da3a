"""load: what is not what was saved is an error that says what differs."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from artifacts import (
    LOCK,
    PROGRAM,
    Bomb,
    Linear,
    X,
    change_lock,
    entries_of,
    forge,
    in_program,
    pickled,
    write,
    xnnpack,
)
from strategies import export
from torchquilt.artifact import load_program, read_lock

# ----------------------------------------------------------------------------------------------------------
# Files that are something else
# ----------------------------------------------------------------------------------------------------------


def zipped(**entries: bytes) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


FOREIGN: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty": (lambda mark: b"", "an empty file"),
    "text": (lambda mark: b"hello", "no zip archive"),
    "pickle": (lambda mark: pickle.dumps(Bomb(mark)), "a pickle"),
    "torch.save": (lambda mark: pickled(Bomb(mark)), "a pickle in a zip archive"),
    "old torch.save": (lambda mark: pickled(Bomb(mark), _use_new_zipfile_serialization=False), "a pickle"),
    "zip": (lambda mark: zipped(**{"a/b.txt": b"b"}), "a zip archive of 1 entries without models/model.json"),
    "empty zip": (lambda mark: zipped(), "a zip archive of 0 entries"),
    "TorchScript": (
        lambda mark: torch.jit.save(torch.jit.script(nn.ReLU()), buffer := io.BytesIO()) or buffer.getvalue(),
        "a pickle in a zip archive",
    ),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("reader", [tq.load, read_lock, load_program])
def test_a_foreign_file_is_an_error_that_says_what_it_is(
    kind: str, reader: Callable[[Path], object], tmp_path: Path
) -> None:
    """With its path and what was expected; a pickle in it is not run."""
    make, expected = FOREIGN[kind]
    path, mark = tmp_path / "model.pt2", tmp_path / "mark"
    path.write_bytes(make(mark))
    with pytest.raises(tq.ArtifactError) as caught:
        reader(path)
    assert expected in str(caught.value.got)
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)
    assert not mark.exists()


def test_a_program_without_a_lock_is_an_error_with_a_remedy(linear: GraphModule, tmp_path: Path) -> None:
    """Another program wrote it; torch.export.load reads it, at one's own risk."""
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(linear, (X,)), path)
    with pytest.raises(tq.ArtifactError, match="without a lock") as caught:
        tq.load(path)
    assert "torch.export.load" in str(caught.value.remedy)


def test_a_float_program_is_loaded_without_a_lock(tmp_path: Path) -> None:
    """A float model out of torch.export.save computes the same, and can be prepared."""
    exported = export(Linear(), X)
    torch.export.save(exported, tmp_path / "float.pt2")
    loaded = load_program(tmp_path / "float.pt2")
    assert torch.equal(loaded.module()(X), exported.module()(X))
    assert torch.equal(loaded.example_inputs[0][0], X)
    assert len(tq.explain(loaded, xnnpack()).quantized) == 1


def test_a_float_program_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    """At any length it is one of ours, with the path."""
    torch.export.save(export(Linear(), X), tmp_path / "float.pt2")
    content = (tmp_path / "float.pt2").read_bytes()
    for length in range(0, len(content), len(content) // 20):
        (tmp_path / "float.pt2").write_bytes(content[:length])
        with pytest.raises(tq.ArtifactError, match=r"float\.pt2"):
            load_program(tmp_path / "float.pt2")


def test_a_missing_file_is_what_python_says_it_is(tmp_path: Path) -> None:
    """FileNotFoundError, with the path in it."""
    for reader in (tq.load, read_lock, load_program):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            reader(tmp_path / "nowhere.pt2")


def test_two_entries_of_one_name_are_an_error(saved: Path) -> None:
    """Readers of archives disagree on which of them counts."""
    with zipfile.ZipFile(saved, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(f"archive/{LOCK}", "{}")
    with pytest.raises(tq.ArtifactError, match="several entries of one name") as caught:
        tq.load(saved)
    assert caught.value.got == f"archive/{LOCK}"


def test_a_file_that_is_cut_off_anywhere_is_an_error(saved: Path) -> None:
    """At any length it is one of ours."""
    content = saved.read_bytes()
    for length in [*range(0, len(content), len(content) // 40), len(content) - 1]:
        saved.write_bytes(content[:length])
        with pytest.raises(tq.ArtifactError):
            tq.load(saved)


@pytest.mark.filterwarnings("ignore")
def test_a_bit_that_flips_anywhere_is_noticed_or_harmless(saved: Path, linear: GraphModule) -> None:
    """Either the error is ours, or the model is the same to the bit (padding and dates of the archive)."""
    content = saved.read_bytes()
    draw = random.Random(0)
    noticed = 0
    for _ in range(150):
        broken = bytearray(content)
        broken[draw.randrange(len(broken))] ^= 1 << draw.randrange(8)
        saved.write_bytes(broken)
        try:
            loaded = tq.load(saved)
        except tq.ArtifactError:
            noticed += 1
        else:
            assert torch.equal(loaded.module()(X), linear(X))
    assert noticed > 100


# ----------------------------------------------------------------------------------------------------------
# Files that were changed
# ----------------------------------------------------------------------------------------------------------


def weight_entry(path: Path, name: str = "fc.weight_int8") -> str:
    """The entry that holds a tensor."""
    (entry,) = {tensor.entry for tensor in read_lock(path).tensors if tensor.name == name}
    return entry


def test_a_tensor_that_was_changed_is_named(saved: Path) -> None:
    """With the digest that it should have and the one that it has."""
    entries = entries_of(saved)
    entry = weight_entry(saved)
    entries[entry] = bytes([entries[entry][0] ^ 1]) + entries[entry][1:]
    expected = next(entry_.sha256 for entry_ in read_lock(saved).entries if entry_.name == entry)
    write(saved, entries)
    with pytest.raises(
        tq.ArtifactError, match=r"not what was saved: tensor fc\.weight_int8 sha256\."
    ) as caught:
        tq.load(saved)
    assert caught.value.expected == expected
    assert caught.value.got == hashlib.sha256(entries[entry]).hexdigest()
    (change,) = caught.value.differences
    assert (change.subject, change.name, change.field) == ("tensor", "fc.weight_int8", "sha256")


def test_a_tensor_whose_bytes_cannot_be_read_is_named(saved: Path) -> None:
    """Damage around a tensor is told as precisely as damage in it."""
    entry = f"archive/{weight_entry(saved)}"
    with zipfile.ZipFile(saved) as archive:
        start = archive.getinfo(entry).header_offset
    content = saved.read_bytes()
    saved.write_bytes(content[:start] + b"XXXX" + content[start + 4 :])
    with pytest.raises(tq.ArtifactError, match=r"tensor fc\.weight_int8 content") as caught:
        tq.load(saved)
    assert "unreadable" in str(caught.value.got)


def test_all_that_was_changed_is_listed(saved: Path) -> None:
    """The error has one difference for each, and says how many there are."""
    entries = entries_of(saved)
    for name in ("fc.weight_int8", "fc.bias"):
        entries[weight_entry(saved, name)] = b"\0" * len(entries[weight_entry(saved, name)])
    del entries["data/sample_inputs/model.pt"]
    entries["data/weights/weight_99"] = b"more"
    write(saved, entries)
    with pytest.raises(tq.ArtifactError, match="and 3 more") as caught:
        tq.load(saved)
    assert {(change.subject, change.name) for change in caught.value.differences} == {
        ("entry", "data/weights/weight_99"),
        ("tensor", "fc.bias"),
        ("tensor", "fc.weight_int8"),
        ("example inputs", "data/sample_inputs/model.pt"),
    }


def test_a_tensor_is_checked_after_torch_made_it(saved: Path) -> None:
    """A lock that fits the bytes and not the tensor is found out: the digest, the dtype, the shape."""

    def change(lock: dict[str, Any]) -> None:
        (row,) = (row for row in lock["tensors"] if row["name"] == "fc.weight_int8")
        row["shape"], row["sha256"] = [16, 8], "0" * 64

    change_lock(saved, change)
    with pytest.raises(tq.ArtifactError, match=r"tensor fc\.weight_int8 shape, and 1 more") as caught:
        tq.load(saved)
    assert (caught.value.expected, caught.value.got) == ("(16, 8)", "(8, 16)")
    assert caught.value.differences[1].field == "sha256"


def test_a_scale_that_was_changed_is_told(saved: Path) -> None:
    """Also where digests were made to fit: the parameters are read from the program and compared."""
    (before,) = (row.scale for row in read_lock(saved).quantized if row.name == "x")

    def change(program: dict[str, Any]) -> dict[str, Any]:
        changed: dict[str, Any] = json.loads(json.dumps(program).replace(repr(before), "0.5"))
        return changed

    with pytest.raises(tq.ArtifactError, match="quantized tensor x scale") as caught:
        tq.load(forge(saved, in_program(change)))
    assert (caught.value.expected, caught.value.got) == (str(before), "0.5")


def test_an_operator_that_was_changed_is_told(saved: Path) -> None:
    """The program calls what the lock says that it calls."""

    def change(program: dict[str, Any]) -> None:
        nodes = program["graph_module"]["graph"]["nodes"]
        nodes[-1]["target"] = "torch.ops.quantized_decomposed.dequantize_per_tensor.tensor"

    forged = forge(saved, in_program(change))
    with pytest.raises(tq.ArtifactError, match=r"operator quantized_decomposed\.dequantize_per_tensor"):
        tq.load(forged)


def test_a_lock_that_was_edited_is_noticed(saved: Path) -> None:
    """Its digest no longer fits."""
    entries = entries_of(saved)
    entries[LOCK] = entries[LOCK].replace(b'"float32"', b'"float16"', 1)
    write(saved, entries)
    with pytest.raises(tq.ArtifactError, match="lock was changed"):
        tq.load(saved)


def test_a_lock_that_is_compressed_is_refused(saved: Path) -> None:
    """Torch compresses nothing, and a small file could unpack to more than there is memory."""
    entries = entries_of(saved)
    lock = entries.pop(LOCK)
    write(saved, entries)
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr(f"archive/{LOCK}", lock, zipfile.ZIP_DEFLATED)
    with pytest.raises(tq.ArtifactError, match="compressed"):
        tq.load(saved)


def test_a_digest_that_is_kept_elsewhere_finds_out_a_forger(saved: Path) -> None:
    """A file that was rewritten, lock and all, loads; with the digest of the true lock it does not."""
    true = read_lock(saved).sha256
    forged = forge(saved, lambda entries: entries.update({".data/note": b"hello"}))
    tq.load(saved, sha256=true)
    tq.load(forged)
    with pytest.raises(tq.ArtifactError, match="not the file that was asked for") as caught:
        tq.load(forged, sha256=true)
    assert true in str(caught.value.expected)


def test_an_operator_that_is_not_known_here_is_an_error_that_says_what_to_do(saved: Path) -> None:
    """The error says to import the module that defines it first."""
    forged = forge(
        saved,
        lambda entries: entries.update(
            {PROGRAM: entries[PROGRAM].replace(b"ops.aten.linear", b"ops.acme.linear")}
        ),
    )
    with pytest.raises(tq.ArtifactError, match="not known here") as caught:
        tq.load(forged)
    assert "torch.ops.acme.linear.default at the node linear" in str(caught.value.got)
    assert "import" in str(caught.value.remedy)


def test_a_program_that_this_torch_cannot_read_is_an_error_with_both_versions(saved: Path) -> None:
    """The cause is kept."""
    forged = forge(saved, in_program(lambda program: program["graph_module"].pop("signature") and None))
    with pytest.raises(tq.ArtifactError, match="torch cannot read") as caught:
        tq.load(forged)
    assert torch.__version__ in str(caught.value.expected)
    assert caught.value.__cause__ is not None
