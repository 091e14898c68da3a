"""Batches from files: which array is which input, checked before the first of them is used.

A file holds all batches, one behind the other along a first dimension that its arrays have in addition to
those of the inputs. In a folder each file is one batch, with arrays as the model takes them; the names of the
files give the order. An array has the name of its input, or ``input_0``, ``input_1`` … by position.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch.export import ExportedProgram

from torchquilt.data.arrays import SUFFIXES, StoredArray, stored_arrays
from torchquilt.data.inputs import ModelInput, ModelInputs
from torchquilt.errors import CalibrationError

_FORMATS = " or ".join(SUFFIXES)


class FileBatches:
    """Batches as :func:`torchquilt.calibrate` takes them, each read when its turn comes.

    Made by :func:`open_batches`.
    """

    def __init__(self, inputs: ModelInputs, sources: Sequence[tuple[Path, int | None]]) -> None:
        self._inputs = inputs
        self._sources = tuple(sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __iter__(self) -> Iterator[object]:
        opened: Path | None = None
        arrays: dict[str, StoredArray] = {}
        for path, row in self._sources:
            if path != opened:
                opened, arrays = path, _match(path, self._inputs.data, is_stacked=row is not None)
            yield self._inputs.batch({name: array.read(row) for name, array in arrays.items()})

    def name_of(self, index: int) -> str:
        """File of a batch and its row there, for errors."""
        path, row = self._sources[index]
        return str(path) if row is None else f"{path}, sample {row}"


def open_batches(
    path: str | os.PathLike[str], program: ExportedProgram, *, limit: int | None = None
) -> FileBatches:
    """The batches in a file or in a folder of files, for a model.

    Names, shapes and dtypes of all of them are checked before any is used. What cannot be read twice, such as
    a pipe, is checked when its turn comes.

    Args:
        path: a ``.npz`` or ``.safetensors`` file, or a folder of such files.
        program: the model.
        limit: at most so many batches.

    Raises:
        CalibrationError: the arrays are not what the model takes; says which file, which input, what was
            expected and what it is.
        OSError: a file cannot be opened.
    """
    inputs = ModelInputs(program)
    source = Path(path)
    if source.is_dir():
        files = _files_in(source)[:limit]
        for file in files:
            if file.is_file():
                _match(file, inputs.data, is_stacked=False)
        return FileBatches(inputs, [(file, None) for file in files])
    _check_suffix(source)
    arrays = _match(source, inputs.data, is_stacked=True)
    return FileBatches(inputs, [(source, row) for row in range(_samples(source, arrays))][:limit])


def first_arrays(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The first batch of a file or folder by the names of its arrays, whatever the model is.

    Args:
        path: as for :func:`open_batches`.

    Raises:
        CalibrationError: there is none.
        OSError: a file cannot be opened.
    """
    source = Path(path)
    file = _files_in(source)[0] if source.is_dir() else source
    _check_suffix(file)
    arrays = stored_arrays(file)
    if source.is_dir():
        return {name: array.read(None) for name, array in arrays.items()}
    _samples(file, arrays)
    return {name: array.read(0) for name, array in arrays.items()}


def _check_suffix(source: Path) -> None:
    if source.suffix not in SUFFIXES:
        raise CalibrationError(
            f"{source} is no file of calibration data.",
            expected=f"a file that ends in {_FORMATS}, or a folder of such files",
            got=repr(source.name),
            remedy="write the arrays with numpy.savez or safetensors.torch.save_file",
        )


def _files_in(folder: Path) -> list[Path]:
    """The files of a folder in the order of their names; hidden ones are not looked at."""
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    strays = [path for path in found if path.suffix not in SUFFIXES or path.is_dir()]
    if strays or not found:
        raise CalibrationError(
            f"{folder} is no folder of calibration data.",
            expected=f"files that end in {_FORMATS}, one for each batch, and nothing else",
            got=", ".join(path.name for path in strays[:5]) if strays else "an empty folder",
            remedy="move what does not belong there to another place" if strays else None,
        )
    return found


def _samples(path: Path, arrays: Mapping[str, StoredArray]) -> int:
    """Number of batches in a file."""
    if not arrays:
        raise CalibrationError(f"{path} has no batches for this model, which takes no data.")
    sizes = {name: next(iter(array.shape), 0) for name, array in arrays.items()}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise CalibrationError(
            f"{path} does not hold as many samples of one input as of another."
            if 0 not in sizes.values()
            else f"{path} holds no samples.",
            expected="one N for all arrays, at least 1",
            got=", ".join(f"{name}: {size}" for name, size in sizes.items()),
        )
    return next(iter(sizes.values()))


def _match(path: Path, inputs: tuple[ModelInput, ...], *, is_stacked: bool) -> dict[str, StoredArray]:
    """Name of each input → the array that holds it."""
    arrays = stored_arrays(path)
    names = {wanted.name: wanted for wanted in inputs}
    positions = {f"input_{index}": wanted.name for index, wanted in enumerate(inputs)}
    found: dict[str, StoredArray] = {}
    for array in arrays.values():
        name = array.name if array.name in names else positions.get(array.name)
        if name is None or name in found:
            raise _unknown(path, array, inputs, found.get(name or ""))
        found[name] = array
    for wanted in inputs:
        if wanted.name not in found:
            raise CalibrationError(
                f"{path}: there is no array for the input {wanted.name}.",
                node=f"input {wanted.name}",
                expected=_described(inputs, is_stacked),
                got=f"arrays {', '.join(arrays)}" if arrays else "no arrays",
                remedy=f"name the array {wanted.name}, or input_{inputs.index(wanted)}",
            )
        _check(path, wanted, found[wanted.name], is_stacked)
    return {wanted.name: found[wanted.name] for wanted in inputs}


def _described(inputs: tuple[ModelInput, ...], is_stacked: bool) -> str:
    return ", ".join(f"{wanted.name}: {wanted.describe(is_stacked)}" for wanted in inputs) or "no arrays"


def _unknown(
    path: Path, array: StoredArray, inputs: tuple[ModelInput, ...], other: StoredArray | None
) -> CalibrationError:
    names = [wanted.name for wanted in inputs]
    near = difflib.get_close_matches(array.name, names, n=1)
    if other is not None:
        problem, remedy = f"{path}: two arrays are for one input.", "remove one of them"
    else:
        problem = f"{path}: the model has no input {array.name}."
        remedy = f"did you mean {near[0]}?" if near else "remove the array, or give it the name of its input"
    return CalibrationError(
        problem,
        expected=f"one array for each of {', '.join(names)}" if names else "no arrays",
        got=f"{other.name} and {array.name}" if other else array.name,
        remedy=remedy,
    )


def _check(path: Path, wanted: ModelInput, array: StoredArray, is_stacked: bool) -> None:
    """Refuse an array that is not what the model takes. Dynamic sizes are checked when it is called."""
    sizes = array.shape[1:] if is_stacked else array.shape
    rank = len(wanted.shape) + is_stacked
    fits = len(array.shape) == rank and all(
        size in (None, given) for size, given in zip(wanted.shape, sizes, strict=True)
    )
    dtype_fits = array.dtype == wanted.dtype or (wanted.is_number and "int" in array.dtype)
    if fits and dtype_fits:
        return
    if not dtype_fits:
        remedy = f"convert it to {wanted.dtype}"
    elif is_stacked and len(array.shape) == rank - 1:
        remedy = "stack the batches: a file has one more dimension in front, of N batches"
    elif not is_stacked and len(array.shape) == rank + 1:
        remedy = "in a folder each file is one batch, without a dimension in front; pass the file itself"
    else:
        remedy = None
    raise CalibrationError(
        f"{path}: the array {array.name} is not what the model takes.",
        node=f"input {wanted.name}",
        expected=wanted.describe(is_stacked),
        got=str(array),
        remedy=remedy,
    )
