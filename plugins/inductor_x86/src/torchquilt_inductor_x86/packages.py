"""Stored packages: our facts beside what Inductor stores, read without running anything."""

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

#: Where a ``.pt2`` file has what others add to it.
_FACTS = "extra/torchquilt.json"


def with_facts(buffer: bytes, facts: Mapping[str, Any]) -> bytes:
    """A package with facts stored in it."""
    stored = io.BytesIO(buffer)
    with zipfile.ZipFile(stored, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(zipfile.ZipInfo(f"{root}/{_FACTS}"), json.dumps(facts))
    return stored.getvalue()


@attrs.frozen
class StoredPackage:
    """Facts that a package states of itself.

    Args:
        inputs, outputs: in order.
        structure: of inputs and outputs, as pytree writes them.
        operators: the kernels that it calls.
        served: a step that only quantizes and dequantizes → the step that reads what it returns.
    """

    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    structure: tuple[str, str]
    operators: tuple[str, ...]
    served: Mapping[str, str]

    @classmethod
    def of(cls, buffer: bytes) -> StoredPackage:
        """Read a package.

        Raises:
            ProgramError: it is damaged, cut off, or something else.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(buffer)) as archive:
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(f"the entry {damaged} is damaged")
                facts = _facts(archive)
        except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, OSError) as error:
            raise ProgramError(
                "This is no AOTInductor package, or it is damaged.",
                expected="a .pt2 file that torchquilt.lower made",
                got=f"{type(error).__name__}: {error}",
                remedy="lower the model again",
            ) from error
        inputs, outputs = facts["structure"]
        return cls(
            slots_from(facts["inputs"]),
            slots_from(facts["outputs"]),
            (inputs, outputs),
            tuple(facts["operators"]),
            facts.get("served", {}),
        )


def _facts(archive: zipfile.ZipFile) -> Mapping[str, Any]:
    name = next((name for name in archive.namelist() if name.endswith(f"/{_FACTS}")), None)
    if name is None:
        raise ProgramError(
            "The package says nothing of its inputs and outputs.",
            expected="a package that torchquilt.lower made",
            got="one without an entry for torchquilt",
            remedy="load it with torch._inductor.aoti_load_package",
        )
    found: Mapping[str, Any] = json.loads(archive.read(name))
    return found
