"""Batches from files: what they become, and how files are refused that do not fit the model."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.export import Dim, ExportedProgram

import torchquilt as tq
from artifacts import Bomb
from strategies import Fn, export, normal
from torchquilt.data import ModelInputs, open_batches

X = normal(3, 2, 4)  # three batches of shape (2, 4)
IDS = torch.arange(6).reshape(3, 2)


class TwoInputs(nn.Module):
    """A float and an integer tensor."""

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """X + ids."""
        return x + ids[:, None]


class Nested(nn.Module):
    """Inputs of every kind that a call may have."""

    def forward(
        self, x: torch.Tensor, batch: dict[str, Any], n: int, flag: bool = True, *, scale: torch.Tensor
    ) -> torch.Tensor:
        """X times n and scale, and what the batch holds."""
        return x * n * scale + batch["a"][0] if flag else x


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    """The model of two inputs."""
    return export(TwoInputs(), X[0], IDS[0])


def save(path: Path, **arrays: torch.Tensor) -> Path:
    """Arrays in a file of the kind that its name says."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, **{name: array.numpy() for name, array in arrays.items()})
    else:
        save_file(
            {name: array.clone(memory_format=torch.contiguous_format) for name, array in arrays.items()}, path
        )
    return path


def assert_batches(got: Any, expected: list[tuple[torch.Tensor, ...]]) -> None:
    """The same tensors in the same order."""
    got = [*got]
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


ALL = [(X[index], IDS[index]) for index in range(3)]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("names", [("x", "ids"), ("input_0", "input_1"), ("x", "input_1")])
def test_a_file_holds_all_batches(
    program: ExportedProgram, tmp_path: Path, suffix: str, names: tuple[str, str]
) -> None:
    """Each index along the first dimension is a batch; arrays are named by input or by position."""
    path = save(tmp_path / f"data{suffix}", **dict(zip(names, (X, IDS), strict=True)))
    batches = open_batches(path, program)
    assert len(batches) == 3
    assert_batches(batches, ALL)
    assert_batches(batches, ALL)  # they can be gone through again
    assert_batches(open_batches(path, program, limit=2), ALL[:2])


def test_a_folder_holds_a_batch_in_each_file(program: ExportedProgram, tmp_path: Path) -> None:
    """The names give the order, whatever the kind of the file, and hidden files are no data."""
    save(tmp_path / "data/b.npz", x=X[1], ids=IDS[1])
    save(tmp_path / "data/c.npz", x=X[2], ids=IDS[2])
    save(tmp_path / "data/a.safetensors", x=X[0], ids=IDS[0])
    (tmp_path / "data/.DS_Store").write_bytes(b"something")
    assert_batches(open_batches(tmp_path / "data", program), ALL)
    assert_batches(open_batches(tmp_path / "data", program, limit=1), ALL[:1])


def test_dtypes_that_numpy_does_not_have_come_from_safetensors(tmp_path: Path) -> None:
    """A bfloat16 input gets its very bits."""
    data = X.bfloat16()
    program = export(Fn(lambda self, x: x * 2), data[0])
    path = save(tmp_path / "data.safetensors", input_0=data)
    assert_batches(open_batches(path, program), [(data[index],) for index in range(3)])


def test_nested_named_and_constant_inputs_find_their_place(tmp_path: Path) -> None:
    """Arrays are flat; a batch has the structure of the call, with numbers and what export kept fixed."""
    shapes = {"x": None, "batch": {"a": [None]}, "n": Dim.DYNAMIC, "flag": None, "scale": None}
    program = torch.export.export(
        Nested(), (X[0], {"a": [X[1]]}, 3, True), {"scale": X[2]}, dynamic_shapes=shapes
    )
    names = [wanted.name for wanted in ModelInputs(program).data]
    assert names == ["x", "batch_a_0", "n", "scale"]
    numbers = torch.tensor([2, 5, 7])
    path = save(tmp_path / "data.npz", **dict(zip(names, (X, X + 1, numbers, X + 2), strict=True)))
    for index, batch in enumerate(open_batches(path, program)):
        assert isinstance(batch, dict)
        assert [*batch] == ["x", "batch", "n", "flag", "scale"]
        assert torch.equal(batch["batch"]["a"][0], X[index] + 1)
        assert (batch["n"], batch["flag"]) == (int(numbers[index]), True)
        expected = Nested()(X[index], {"a": [X[index] + 1]}, int(numbers[index]), scale=X[index] + 2)
        assert torch.equal(program.module()(*list(batch.values())[:4], scale=batch["scale"]), expected)


def test_a_dynamic_size_may_be_any(tmp_path: Path) -> None:
    """Files of a folder may have different sizes where the model takes them."""
    program = export(TwoInputs(), X[0], IDS[0], dynamic_shapes={"x": {0: Dim("n")}, "ids": {0: Dim("n")}})
    for rows in (2, 5):
        save(tmp_path / f"data/{rows}.npz", x=normal(rows, 4), ids=torch.arange(rows))
    assert [batch[0].shape for batch in open_batches(tmp_path / "data", program)] == [(2, 4), (5, 4)]


# --- What does not fit --------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, torch.Tensor], str, str | None, str, str]] = {
    # arrays, problem, input, expected, got
    "missing": (
        {"x": X},
        "there is no array for the input ids",
        "input ids",
        "ids: int64 [N, 2]",
        "arrays x",
    ),
    "unknown": (
        {"x": X, "ids": IDS, "mask": IDS},
        "the model has no input mask",
        None,
        "one array for each of x, ids",
        "mask",
    ),
    "twice": ({"x": X, "input_0": X, "ids": IDS}, "two arrays are for one input", None, "x, ids", "input_0"),
    "dtype": (
        {"x": X.double(), "ids": IDS},
        "the array x is not what the model takes",
        "input x",
        "float32 [N, 2, 4]",
        "float64 [3, 2, 4]",
    ),
    "shape": (
        {"x": X[:, :, :3], "ids": IDS},
        "the array x is not what",
        "input x",
        "float32 [N, 2, 4]",
        "float32 [3, 2, 3]",
    ),
    "rank": ({"x": X[0], "ids": IDS}, "the array x", "input x", "float32 [N, 2, 4]", "float32 [2, 4]"),
    "samples": ({"x": X, "ids": IDS[:2]}, "as many samples", None, "one N for all", "x: 3, ids: 2"),
    "none": ({"x": X[:0], "ids": IDS[:0]}, "holds no samples", None, "at least 1", "x: 0"),
}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("case", BAD)
def test_arrays_that_do_not_fit_are_refused(
    program: ExportedProgram, tmp_path: Path, case: str, suffix: str
) -> None:
    """The error says which file, which input, what was expected and what is there."""
    arrays, problem, node, expected, got = BAD[case]
    path = save(tmp_path / f"data{suffix}", **arrays)
    with pytest.raises(tq.CalibrationError, match=problem) as caught:
        open_batches(path, program)
    assert str(path) in caught.value.problem
    assert caught.value.node == node
    assert expected in str(caught.value.expected)
    assert got in str(caught.value.got)


def test_every_file_of_a_folder_is_checked_before_any_is_used(
    program: ExportedProgram, tmp_path: Path
) -> None:
    """A fault of the last file shows at once, with its name."""
    save(tmp_path / "data/0.npz", x=X[0], ids=IDS[0])
    save(tmp_path / "data/1.npz", x=X[1], ids=IDS[1].int())
    with pytest.raises(tq.CalibrationError, match=r"1\.npz: the array ids") as caught:
        open_batches(tmp_path / "data", program)
    assert (caught.value.expected, caught.value.got) == ("int64 [2]", "int32 [2]")
    assert caught.value.remedy == "convert it to int64"
    assert len(open_batches(tmp_path / "data", program, limit=1)) == 1


@pytest.mark.parametrize(
    ("is_folder", "arrays", "remedy"),
    [(True, {"x": X, "ids": IDS}, "each file is one batch"), (False, {"x": X[0], "ids": IDS[0]}, "stack")],
)
def test_a_file_and_a_folder_that_are_mixed_up_are_answered_with_the_other(
    program: ExportedProgram, tmp_path: Path, is_folder: bool, arrays: dict[str, torch.Tensor], remedy: str
) -> None:
    """Whether arrays have the dimension of samples depends on it; the error says so."""
    path = save(tmp_path / "data/all.npz", **arrays)
    with pytest.raises(tq.CalibrationError) as caught:
        open_batches(path.parent if is_folder else path, program)
    assert remedy in str(caught.value.remedy)


FOREIGN: dict[str, Callable[[Path], Any]] = {
    "data.npz": lambda path: path.write_bytes(b"something else"),
    "cut.npz": lambda path: path.write_bytes(save(path, x=X, ids=IDS).read_bytes()[:-30]),
    "text.npz": lambda path: np.savez(path, x=np.array(["a"])),
    "data.safetensors": lambda path: path.write_bytes(b"something else"),
    "empty.safetensors": lambda path: path.write_bytes(b""),
    "data.npy": lambda path: np.save(path, X.numpy()),
    "data.pt": lambda path: torch.save(X, path),
    "empty": lambda path: path.mkdir(),
    "strays": lambda path: save(path / "0.npz", x=X) and (path / "labels.txt").write_text("0"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_calibration_data_is_refused(program: ExportedProgram, tmp_path: Path, name: str) -> None:
    """The error is ours, says which file, and what was expected there."""
    FOREIGN[name](tmp_path / name)
    with pytest.raises(tq.CalibrationError) as caught:
        open_batches(tmp_path / name, program)
    assert str(tmp_path / name) in caught.value.problem
    assert caught.value.expected
    assert caught.value.got


def test_objects_in_a_file_are_not_unpickled(program: ExportedProgram, tmp_path: Path) -> None:
    """An array of objects is of a dtype that no model takes, and is refused by that."""
    mark = tmp_path / "mark"
    np.savez(tmp_path / "data.npz", x=np.array([[[Bomb(mark)]]], dtype=object), ids=IDS.numpy())
    with pytest.raises(tq.CalibrationError, match="the array x") as caught:
        open_batches(tmp_path / "data.npz", program)
    assert "object" in str(caught.value.got)
    assert not mark.exists()


def test_damage_behind_the_header_shows_when_the_array_is_read(
    program: ExportedProgram, tmp_path: Path
) -> None:
    """It is the same kind of error, and not a batch of other numbers."""
    path = save(tmp_path / "data.npz", x=X, ids=IDS)
    content = path.read_bytes()
    at = content.index(X.numpy().tobytes())
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(tq.CalibrationError, match="damaged"):
        next(iter(open_batches(path, program)))


@pytest.mark.parametrize("package", ["numpy", "safetensors"])
def test_a_missing_package_is_answered_with_the_pip_line(
    program: ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """Each format needs its package, and only when it is used."""
    path = save(tmp_path / ("data.npz" if package == "numpy" else "data.safetensors"), x=X, ids=IDS)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(tq.CalibrationError, match="not installed") as caught:
        open_batches(path, program)
    assert caught.value.remedy == f"pip install {package}"


def test_a_pipe_is_read_when_its_turn_comes(program: ExportedProgram, tmp_path: Path) -> None:
    """Opening a folder does not wait for a pipe without a writer."""
    save(tmp_path / "data/0.npz", x=X[0], ids=IDS[0])
    os.mkfifo(tmp_path / "data/1.npz")
    batches = iter(open_batches(tmp_path / "data", program))
    assert_batches([next(batches)], ALL[:1])
