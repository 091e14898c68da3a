"""The arrays of a file, described before any of them is read."""

from __future__ import annotations

import functools
import importlib
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch

from torchquilt.errors import CalibrationError

#: What safetensors calls each dtype, as torch calls it.
_SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}

# What numpy and zipfile raise for files that are damaged, encrypted or something else.
_NPZ_FAILURES = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError)


@attrs.frozen(eq=False)
class StoredArray:
    """One array of a file.

    Args:
        name: its name there.
        dtype: as torch calls it, ``"float32"``; for what torch has no name for, as the file calls it.
        shape: its sizes.
        read: reads the element of this index along the first dimension, or all of it for None.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[int | None], torch.Tensor]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def stored_arrays(path: Path) -> dict[str, StoredArray]:
    """The arrays of a file by their names. Of a ``.npz`` file an array is read as a whole when it is needed.

    Args:
        path: a file that ends in one of :data:`SUFFIXES`.

    Raises:
        CalibrationError: the file is damaged or something else, or the package that reads it is missing.
        OSError: it cannot be opened.
    """
    return SUFFIXES[path.suffix](path)


def _package(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise CalibrationError(
            f"{path} cannot be read: the package {name} is not installed.",
            expected=name,
            got=str(error),
            remedy=f"pip install {name}",
        ) from error


def _unreadable(path: Path, kind: str, error: Exception) -> CalibrationError:
    return CalibrationError(
        f"{path} cannot be read: it is damaged, or something else.",
        expected=kind,
        got=f"{type(error).__name__}: {error}",
        remedy="write the file again, or name another one",
    )


def _npz(path: Path) -> dict[str, StoredArray]:
    numpy = _package("numpy", path)
    kind = "a .npz file, as numpy.savez writes it"
    found = {}
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                for entry in archive.namelist():
                    found[entry.removesuffix(".npy")] = _npy(numpy, archive, entry, path)
        except _NPZ_FAILURES as error:
            raise _unreadable(path, kind, error) from error
    return found


def _npy(numpy: Any, archive: zipfile.ZipFile, entry: str, path: Path) -> StoredArray:
    """Read the header of one array, which is short, and nothing of what comes behind it."""
    with archive.open(entry) as file:
        version = numpy.lib.format.read_magic(file)
        reader = {(1, 0): "read_array_header_1_0", (2, 0): "read_array_header_2_0"}.get(version)
        if reader is None:
            raise ValueError(f"{entry} is of version {version} of the format, which is for structures")
        shape, _, dtype = getattr(numpy.lib.format, reader)(file)
    name = entry.removesuffix(".npy")

    @functools.cache
    def whole() -> torch.Tensor:
        try:
            # Objects would be unpickled, which can run code.
            with numpy.load(path, allow_pickle=False) as arrays:
                return torch.from_numpy(arrays[name])
        except _NPZ_FAILURES as error:
            raise _unreadable(path, f"the array {name} of {shape}, {dtype}", error) from error

    def read(index: int | None) -> torch.Tensor:
        return whole() if index is None else whole()[index]

    return StoredArray(name, dtype.name if dtype.isnative else dtype.str, tuple(shape), read)


def _safetensors(path: Path) -> dict[str, StoredArray]:
    package = _package("safetensors", path)
    with path.open("rb"):
        pass  # what cannot be opened is told as Python tells it
    try:
        file = package.safe_open(path, framework="pt")
        return {name: _safetensor(file, name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except package.SafetensorError as error:
        raise _unreadable(path, "a .safetensors file", error) from error


def _safetensor(file: Any, name: str) -> StoredArray:
    stored = file.get_slice(name)

    def read(index: int | None) -> torch.Tensor:
        found: torch.Tensor = file.get_tensor(name) if index is None else stored[index]
        return found

    dtype = stored.get_dtype()
    return StoredArray(name, _SAFETENSORS_DTYPES.get(dtype, dtype), tuple(stored.get_shape()), read)


#: How each kind of file is read.
SUFFIXES: dict[str, Callable[[Path], dict[str, StoredArray]]] = {
    ".npz": _npz,
    ".safetensors": _safetensors,
}
