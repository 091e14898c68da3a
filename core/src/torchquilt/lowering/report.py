"""The report of a lowered program: all but the program itself, for people and as JSON.

Importing this module does not import torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from torchquilt._internal.json_values import from_document, from_plain, parsed, to_plain, with_new_names
from torchquilt._internal.text_tables import counted
from torchquilt.errors import ModelError
from torchquilt.ledger.ledger import Ledger
from torchquilt.lowering.program_facts import Leftover, LoweredOperation, Ports, Verification
from torchquilt.lowering.target import Kernel

#: What is added to the name of a program for the file beside it that says what is in it.
REPORT_SUFFIX = ".json"
#: Version of the JSON of a report.
JSON_SCHEMA = 1
#: Fields of operations that torchquilt 0.1.0 wrote → of today.
_NEW_IN_OPERATIONS = {"place": "delegate"}
#: Saved models begin with it, lowered programs do not.
_ARCHIVE = b"PK"


@attrs.frozen(eq=False)
class ProgramReport:
    """Everything about a program but the program itself.

    Args:
        sha256: digest of the program.
        nbytes: its size.
        files: digests of the files that have to lie beside it, by their names.
        target, backends, io, delegates, operators, operations, kernels, leftovers, float_islands,
            verification, ledger: as for :class:`torchquilt.LoweredProgram`.
    """

    sha256: str
    nbytes: int
    target: str
    backends: tuple[str, ...]
    io: Ports
    delegates: tuple[str, ...]
    operators: tuple[str, ...]
    operations: tuple[LoweredOperation, ...]
    kernels: tuple[Kernel, ...]
    leftovers: tuple[Leftover, ...]
    float_islands: tuple[tuple[str, ...], ...]
    verification: Verification | None
    ledger: Ledger | None
    files: dict[str, str] = attrs.field(factory=dict)

    def to_json(self) -> str:
        """The report as JSON text, with a schema version."""
        return json.dumps(self.to_plain(), indent=1, allow_nan=False)

    def to_plain(self) -> dict[str, Any]:
        """The same as dicts, lists, texts and numbers."""
        plain = {"schema": JSON_SCHEMA, **to_plain(self)}
        return {
            **plain,
            "verification": _without_infinity(plain["verification"]),
            "ledger": None if self.ledger is None else self.ledger.to_plain(),
        }

    @classmethod
    def from_json(cls, text: str) -> ProgramReport:
        """The inverse of :meth:`to_json`.

        Raises:
            ModelError: the text is no report, or one of another schema version.
        """
        what = "the report of a program"
        return from_document(parsed(text, what, ModelError), JSON_SCHEMA, what, ModelError, _report_from)

    def summary(self) -> list[str]:
        """Summary of the program, in lines."""
        lines = [f"{self.target}: {self.nbytes:,} bytes, from {', '.join(self.backends) or 'no backend'}"]
        if self.files:
            lines.append(f"beside it: {', '.join(self.files)}")
        lines.append(str(self.io))
        if self.operations:
            integers = sum(one.runs_as_integers for one in self.operations)
            islands = len(self.float_islands)
            lines.append(
                f"computed as integers: {counted(integers, 'operator')}; islands of float: {islands}"
            )
        if self.operators:
            lines.append(f"kernels of the runtime: {', '.join(self.operators)}")
        if self.leftovers:
            lines.append("left outside:")
        lines += [f"  {one}" for one in self.leftovers]
        if self.ledger is not None:
            lines.append(str(self.ledger))
        if self.verification is not None:
            told = str(self.verification).splitlines()
            lines += ["against the quantized model:", *(f"  {line}" for line in told)]
        return lines


def report_path(path: Path) -> Path:
    """Path of the report of a program."""
    return path.with_name(path.name + REPORT_SUFFIX)


def is_reported(path: Path) -> bool:
    """Whether there is a report beside a file that is no saved model."""
    with path.open("rb") as file:
        is_archive = file.read(len(_ARCHIVE)) == _ARCHIVE
    return not is_archive and report_path(path).is_file()


def _report_from(data: dict[str, Any]) -> ProgramReport:
    checked = {
        **data,
        "operations": [with_new_names(one, _NEW_IN_OPERATIONS) for one in data["operations"]],
        "verification": _with_infinity(data["verification"]),
        "ledger": None,
    }
    report = from_plain(ProgramReport, checked)
    ledger = data["ledger"]
    return report if ledger is None else attrs.evolve(report, ledger=Ledger.from_plain(ledger))


def _without_infinity(verification: Any) -> Any:
    """Comparison of a program for JSON, which has no infinite numbers: a ratio without noise is null."""
    return _with_ratios(verification, lambda sqnr: sqnr if math.isfinite(sqnr) else None)


def _with_infinity(verification: Any) -> Any:
    """The inverse."""
    return _with_ratios(verification, lambda sqnr: math.inf if sqnr is None else sqnr)


def _with_ratios(verification: Any, change: Callable[[Any], Any]) -> Any:
    if verification is None:
        return None
    outputs = [{**output, "sqnr": change(output["sqnr"])} for output in verification["outputs"]]
    return {**verification, "outputs": outputs}
