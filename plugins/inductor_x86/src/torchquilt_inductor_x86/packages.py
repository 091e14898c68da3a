"""Stored packages: read without running anything of them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import attrs

from torchquilt import ProgramError
from torchquilt.backend import Slot
from torchquilt_inductor_x86.signature import slots_from

#: The entry of a package's metadata that has our facts.
KEY = "torchquilt"
_METADATA = ".wrapper_metadata.json"


@attrs.frozen
class StoredPackage:
    """What a package says of itself.

    Args:
        inputs, outputs: in order.
        structure: of inputs and outputs, as pytree writes them.
        operators: the kernels that it calls.
        instructions: the instruction set that its code was generated for (``avx512``).
    """

    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    structure: tuple[str, str]
    operators: tuple[str, ...]
    instructions: str

    @classmethod
    def of(cls, buffer: bytes) -> StoredPackage:
        """Read a package.

        Raises:
            ProgramError: it is damaged, cut off, or something else.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(buffer)) as archive:
                if damaged := archive.testzip():
                    raise ProgramError(
                        "The package is damaged.", got=f"the entry {damaged} has another checksum"
                    )
                metadata = _metadata(archive)
        except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
            raise ProgramError(
                "This is no AOTInductor package, or it is cut off.",
                expected="a .pt2 file that torchquilt.lower made",
                got=f"{type(error).__name__}: {error}",
                remedy="lower the model again",
            ) from error
        return cls(
            slots_from(metadata["inputs"]),
            slots_from(metadata["outputs"]),
            (metadata["structure"][0], metadata["structure"][1]),
            tuple(metadata["operators"]),
            metadata["instructions"],
        )


def _metadata(archive: zipfile.ZipFile) -> Mapping[str, Any]:
    for name in archive.namelist():
        if name.endswith(_METADATA):
            found = json.loads(archive.read(name))
            if KEY in found:
                known: Mapping[str, Any] = json.loads(found[KEY])
                return known
    raise ProgramError(
        "The package says nothing of its inputs and outputs.",
        expected="a package that torchquilt.lower made",
        got="one without an entry for torchquilt",
        remedy="load it with torch._inductor.aoti_load_package",
    )
