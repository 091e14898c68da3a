"""The report of a lowered program: all but the program itself, for people and as JSON.

Importing this module does not import torch.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import attrs

from torchquilt._internal.text_tables import counted
from torchquilt.errors import ModelError
from torchquilt.ledger.ledger import Ledger
from torchquilt.lowering.program_facts import (
    Agreement,
    Dimension,
    Leftover,
    Placed,
    Port,
    Ports,
    Verification,
)
from torchquilt.lowering.target import Kernel

#: What is added to the name of a program for the file beside it that says what is in it.
REPORT_SUFFIX = ".json"
#: Version of the JSON of a report.
JSON_SCHEMA = 1
#: Saved models begin with it, lowered programs do not.
_ARCHIVE = b"PK"


@attrs.frozen(eq=False)
class ProgramReport:
    """Everything about a program but the program itself.

    Args:
        sha256: digest of the program.
        nbytes: its size.
        target, backends, io, delegates, operators, ledger, operations, kernels, leftovers, float_islands,
            verification: as for :class:`torchquilt.LoweredProgram`.
    """

    sha256: str
    nbytes: int
    target: str
    backends: tuple[str, ...]
    io: Ports
    delegates: tuple[str, ...]
    operators: tuple[str, ...]
    ledger: Ledger | None
    operations: tuple[Placed, ...]
    kernels: tuple[Kernel, ...]
    leftovers: tuple[Leftover, ...]
    float_islands: tuple[tuple[str, ...], ...]
    verification: Verification | None

    def to_json(self) -> str:
        """The report as JSON text, with a schema version."""
        checked = self.verification
        return json.dumps(
            {
                "schema": JSON_SCHEMA,
                "sha256": self.sha256,
                "nbytes": self.nbytes,
                "target": self.target,
                "backends": [*self.backends],
                "io": attrs.asdict(self.io),
                "delegates": [*self.delegates],
                "operators": [*self.operators],
                "operations": [attrs.asdict(one) for one in self.operations],
                "kernels": [attrs.asdict(kernel) for kernel in self.kernels],
                "leftovers": [attrs.asdict(one) for one in self.leftovers],
                "float_islands": [[*island] for island in self.float_islands],
                "verification": None if checked is None else plain_verification(checked),
                "ledger": None if self.ledger is None else self.ledger.to_plain(),
            },
            indent=1,
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, text: str) -> ProgramReport:
        """The inverse of :meth:`to_json`.

        Raises:
            ModelError: the text is no report, or one of another schema version.
        """
        try:
            data = json.loads(text)
            if data["schema"] != JSON_SCHEMA:
                raise ModelError(
                    "This report is of another schema version.",
                    expected=JSON_SCHEMA,
                    got=data["schema"],
                    remedy="read it with the torchquilt that wrote it",
                )
            return cls(sha256=data["sha256"], nbytes=data["nbytes"], **_fields(data))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(
                "This is no report of a program.", got=f"{type(error).__name__}: {error}"
            ) from error

    def summary(self) -> list[str]:
        """Summary of the program, in lines."""
        lines = [f"{self.target}: {self.nbytes:,} bytes, from {', '.join(self.backends) or 'no backend'}"]
        lines.append(str(self.io))
        if self.operations:
            integers = sum(one.runs_as_integers for one in self.operations)
            islands = len(self.float_islands)
            lines.append(
                f"delegated as integers: {counted(integers, 'operator')}; islands of float: {islands}"
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


def plain_verification(verification: Verification) -> dict[str, Any]:
    """Comparison of a program for JSON, which has no infinite numbers: a ratio without noise is null."""
    return {
        "least_sqnr": verification.least_sqnr,
        "skipped": verification.skipped,
        "outputs": [
            {**attrs.asdict(output), "sqnr": output.sqnr if math.isfinite(output.sqnr) else None}
            for output in verification.outputs
        ],
    }


def is_reported(path: Path) -> bool:
    """Whether there is a report beside a file that is no saved model."""
    with path.open("rb") as file:
        is_archive = file.read(len(_ARCHIVE)) == _ARCHIVE
    return not is_archive and report_path(path).is_file()


def _fields(data: dict[str, Any]) -> dict[str, Any]:
    """The fields of a program from the JSON of its report."""
    checked = data["verification"]
    return {
        "target": data["target"],
        "backends": tuple(data["backends"]),
        "delegates": tuple(data["delegates"]),
        "operators": tuple(data["operators"]),
        "io": _read_ports(data["io"]),
        "operations": tuple(Placed(**one) for one in data["operations"]),
        "kernels": tuple(
            Kernel(**{**one, "reads": tuple(one["reads"]), "writes": tuple(one["writes"])})
            for one in data["kernels"]
        ),
        "leftovers": tuple(Leftover(**one) for one in data["leftovers"]),
        "float_islands": tuple(map(tuple, data["float_islands"])),
        "verification": None
        if checked is None
        else Verification(
            tuple(map(_read_agreement, checked["outputs"])), checked["least_sqnr"], checked.get("skipped", "")
        ),
        "ledger": None if data["ledger"] is None else Ledger.from_json(json.dumps(data["ledger"])),
    }


def _read_ports(data: dict[str, Any]) -> Ports:
    inputs, outputs = (tuple(map(_read_port, data[name])) for name in ("inputs", "outputs"))
    return Ports(inputs, outputs, tuple(data["arguments"]))


def _read_port(data: dict[str, Any]) -> Port:
    shape = tuple(Dimension(**size) for size in data["shape"])
    return Port(**{**data, "shape": shape, "dim_order": tuple(data["dim_order"])})


def _read_agreement(data: dict[str, Any]) -> Agreement:
    return Agreement(**{**data, "sqnr": math.inf if data["sqnr"] is None else data["sqnr"]})
